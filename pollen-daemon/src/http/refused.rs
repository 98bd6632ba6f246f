//! Why the HTTP listeners turned a client away, and how often. Owns the reasons and the counters that `/metrics` shows;
//! knows neither sockets nor routes. Invariant: a reason is counted once for an exchange, and labels never change.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::{Response, StatusCode};
use axum::response::IntoResponse as _;

use super::failure::{Code, Failure};

/// Why an exchange came to nothing before any part of the daemon was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The request's line or headers do not parse.
    HeadMalformed,
    /// The request's line and headers are larger than a listener reads.
    HeadTooLarge,
    /// The request's line and headers did not come in time.
    HeadSlow,
    /// It had brought no request when all places were taken and another client came; or it did not read its answer.
    Displaced,
    /// The client went away before the exchange was over.
    BrokenOff,
    /// The exchange took longer than any of ours does: a client that does not read.
    ExchangeSlow,
    /// There is no such path.
    Route,
    /// The path does not take this method.
    Method,
    /// A part of the path, or what follows the question mark, does not parse.
    Target,
    /// The body is larger than any that we take.
    BodyTooLarge,
    /// The body did not come in time.
    BodySlow,
    /// The body ended early, or its framing is wrong.
    BodyBroken,
    /// The body is not the JSON object that the request takes.
    BodyMalformed,
    /// As many as may follow the timeline and the logs do so already.
    Followers,
    /// As many connections as may call do so already.
    Callers,
    /// As many as may publish a seed do so already.
    Uploads,
}

impl Refused {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 16] = [
        Self::HeadMalformed,
        Self::HeadTooLarge,
        Self::HeadSlow,
        Self::Displaced,
        Self::BrokenOff,
        Self::ExchangeSlow,
        Self::Route,
        Self::Method,
        Self::Target,
        Self::BodyTooLarge,
        Self::BodySlow,
        Self::BodyBroken,
        Self::BodyMalformed,
        Self::Followers,
        Self::Callers,
        Self::Uploads,
    ];

    /// As metrics show it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::HeadMalformed => "head_malformed",
            Self::HeadTooLarge => "head_too_large",
            Self::HeadSlow => "head_slow",
            Self::Displaced => "displaced",
            Self::BrokenOff => "broken_off",
            Self::ExchangeSlow => "exchange_slow",
            Self::Route => "route",
            Self::Method => "method",
            Self::Target => "target",
            Self::BodyTooLarge => "body_too_large",
            Self::BodySlow => "body_slow",
            Self::BodyBroken => "body_broken",
            Self::BodyMalformed => "body_malformed",
            Self::Followers => "followers",
            Self::Callers => "callers",
            Self::Uploads => "uploads",
        }
    }

    /// What a broken exchange is counted as.
    pub(super) fn of(error: &hyper::Error) -> Self {
        // What is too large to parse is a parse error as well: the narrower question comes first.
        if error.is_parse_too_large() {
            Self::HeadTooLarge
        } else if error.is_parse() {
            Self::HeadMalformed
        } else if error.is_timeout() {
            Self::HeadSlow
        } else {
            Self::BrokenOff
        }
    }

    /// The answer that says so, marked to be counted when it is sent.
    pub(crate) fn with(self, status: StatusCode, message: impl Into<String>) -> axum::response::Response {
        self.mark((status, axum::Json(Failure::new(Code::Usage, message))).into_response())
    }

    /// Marks an answer to be counted when it is sent.
    pub(crate) fn mark<B>(self, mut response: Response<B>) -> Response<B> {
        response.extensions_mut().insert(self);
        response
    }
}

/// How often each reason occurred at one listener, since the daemon started.
#[derive(Debug, Default)]
pub struct Tally([AtomicU64; Refused::ALL.len()]);

impl Tally {
    pub(crate) fn count(&self, reason: Refused) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Each reason that occurred.
    pub fn counted(&self) -> impl Iterator<Item = (Refused, u64)> {
        Refused::ALL.into_iter().map(|reason| (reason, self.of(reason))).filter(|(_, n)| *n > 0)
    }

    /// How often `reason` occurred.
    #[must_use]
    pub fn of(&self, reason: Refused) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }
}

/// What both HTTP listeners turned away.
#[derive(Debug, Default)]
pub struct Tallies {
    pub control: std::sync::Arc<Tally>,
    pub metrics: std::sync::Arc<Tally>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_counter_and_a_label_of_its_own() {
        let tally = Tally::default();
        for (place, reason) in Refused::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place, "{reason:?} is out of order");
            for _ in 0..=place {
                tally.count(reason);
            }
        }
        let counted: std::collections::BTreeMap<&str, u64> =
            tally.counted().map(|(reason, n)| (reason.label(), n)).collect();
        assert_eq!(counted.len(), Refused::ALL.len());
        assert_eq!(counted["uploads"], 16);
    }
}
