//! Every side effect of Pollen lives here; what is decided is decided in `pollen_common`.

pub mod control;
pub mod datapath;
pub mod metrics;
pub mod services;
pub mod status;
