//! The scenarios that Pollen must pass, with real processes in the lab.

mod admission;
mod authority;
mod booted;
mod circuits;
mod conditions;
mod corpora;
mod death;
mod directory;
mod forms;
mod garbage;
mod kernel;
mod lab;
mod links;
mod lost;
mod operate;
mod partition;
mod pauses;
mod policies;
mod punching;
mod restart;
mod rooms;
mod seeds;
mod services;
mod stranger;
mod systemd;
mod tidy;
