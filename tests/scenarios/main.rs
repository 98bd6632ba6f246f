//! The scenarios that Pollen must pass, with real processes in the lab.

mod lab;
mod tidy;
