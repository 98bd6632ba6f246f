//! The control socket: how an operator's tools reach a running daemon. Owns the HTTP API under `/v1/` on a Unix socket
//! and its client; must not know how the daemon is wired (see [`handle`]).
//! Invariant: the socket never carries root power, and no request or number of requests grows memory without bound.

pub mod handle;
