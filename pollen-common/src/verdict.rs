//! The only forwarding decision: every rung of the datapath calls it.
