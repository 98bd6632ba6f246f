//! Every side effect of Pollen lives here; what is decided is decided in `pollen_common`.

pub mod cli;
pub mod clock;
pub mod config;
pub mod content;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod driver;
pub mod enroll;
pub mod events;
pub mod handle;
pub mod http;
pub mod keys;
pub mod logs;
pub mod metrics;
mod nearest;
pub mod services;
mod standing;
pub mod status;
pub mod store;
pub mod systemd;
pub mod transport;
pub mod workload;
