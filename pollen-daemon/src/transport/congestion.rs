//! Congestion control by delay and loss together: quick while no queue is seen, as careful as Reno where there is one.
//! Owns the window; knows no paths.
//! Invariant: marks, persistent congestion and losses beyond a tenth always count, whatever the round trip says.
//!
//! One connection lives for weeks and over many links, so what CUBIC learns once (a threshold, a window that grows by the
//! clock) is a burden later; and a link that loses packets by chance is no fuller for it, while CUBIC takes each loss for
//! a full queue: at 20 ms and 1 % it sent a thirtieth of what plain TCP with BBR does. A queue can be seen: packets wait
//! in it. The two modes are those of YeAH-TCP (Baiocchi, Castellani and Vacirca, 2007).

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;

/// What may be in flight before anything is known of the path, in packets (RFC 9002, 7.2), and the least ever.
const PACKETS_INITIAL: u64 = 10;
const PACKETS_MIN: u64 = 4;
/// A round trip so much longer than the path's own, as a fraction of that, is a queue.
const QUEUE_FRACTION: u32 = 4;
/// Or so much: below it are scheduling, merging and what a radio does to send a frame again, and no queue that hurts.
const QUEUE_MIN: Duration = Duration::from_millis(2);
/// Without a queue the window grows by a byte for so many acknowledged, once a queue has been seen at all; before, by one
/// for each.
const GROWTH_FRACTION: u64 = 4;
/// What stays of the window when something was lost in a queue, in tenths, as CUBIC does it.
const KEPT_TENTHS: u64 = 7;
/// Beyond one byte of so many the loss itself says that the path is overrun: a queue may be too short to be seen.
const LOSS_FRACTION_MAX: u64 = 10;
/// Samples of a round trip after which a round's shortest says something: jitter is gone from the least of some.
const SAMPLES_MIN: u32 = 8;
/// How long the shortest round trip counts, at least and at most twice: the path may have changed to a longer one. As long
/// as BBR's: others' queues rise and fall within it, and ours is cut within it.
const FLOOR_KEPT: Duration = Duration::from_secs(10);

/// Makes a controller for each connection.
#[derive(Debug, Default)]
pub struct Config;

impl ControllerFactory for Config {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(Delay::new(now, mtu))
    }
}

/// What one round trip brought.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    shortest: Option<Duration>,
    samples: u32,
    acked: u64,
    lost: u64,
}

/// The shortest round trip of this period and the one before.
#[derive(Clone, Copy, Debug)]
struct Floor {
    since: Instant,
    this: Duration,
    last: Duration,
}

impl Floor {
    fn sample(&mut self, rtt: Duration, now: Instant) {
        if now.saturating_duration_since(self.since) > FLOOR_KEPT {
            *self = Self { since: now, this: rtt, last: self.this };
        }
        self.this = self.this.min(rtt);
    }

    fn shortest(&self) -> Duration {
        self.this.min(self.last)
    }
}

/// The controller of one connection.
#[derive(Clone, Debug)]
struct Delay {
    window: u64,
    mtu: u64,
    /// No queue has been seen since the beginning, or since all was lost.
    starting: bool,
    /// The last packet sent, and the one whose acknowledgement ends the round.
    sent: u64,
    round_ends: u64,
    this: Round,
    last: Round,
    floor: Floor,
    /// When the window was last cut: what was sent before is of the window before.
    cut: Option<Instant>,
    /// Bytes acknowledged that have not made the window grow yet, with a queue.
    credit: u64,
}

impl Delay {
    fn new(now: Instant, mtu: u16) -> Self {
        let mtu = u64::from(mtu);
        Self {
            window: PACKETS_INITIAL * mtu,
            mtu,
            starting: true,
            sent: 0,
            round_ends: 0,
            this: Round::default(),
            last: Round::default(),
            floor: Floor { since: now, this: Duration::MAX, last: Duration::MAX },
            cut: None,
            credit: 0,
        }
    }

    /// The shortest round trip of late, once there were enough to be sure of it.
    fn recent(&self) -> Option<Duration> {
        if self.this.samples >= SAMPLES_MIN { self.this.shortest } else { self.last.shortest }
    }

    /// Whether packets wait in a queue; before anything is known of the path, they do not.
    fn sees_queue(&self) -> bool {
        let floor = self.floor.shortest();
        self.recent().is_some_and(|rtt| rtt > floor + (floor / QUEUE_FRACTION).max(QUEUE_MIN))
    }

    /// Whether so much is lost that it cannot be chance.
    fn is_overrun(&self) -> bool {
        let (acked, lost) = (self.this.acked + self.last.acked, self.this.lost + self.last.lost);
        lost * LOSS_FRACTION_MAX > acked + lost && acked + lost > PACKETS_INITIAL * self.mtu
    }

    fn acked(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool) {
        let sample = now.saturating_duration_since(sent);
        self.floor.sample(sample, now);
        self.this.shortest = Some(self.this.shortest.map_or(sample, |shortest| shortest.min(sample)));
        self.this.samples = self.this.samples.saturating_add(1);
        self.this.acked += bytes;
        // What was sent before a cut says nothing of the window since, and a window that is not filled nothing at all.
        if !app_limited && self.cut.is_none_or(|cut| sent > cut) {
            self.grow(bytes);
        }
    }

    fn grow(&mut self, acked: u64) {
        if !self.sees_queue() {
            self.window += if self.starting { acked } else { acked / GROWTH_FRACTION };
            return;
        }
        if std::mem::take(&mut self.starting) {
            // Half of what a start has in flight is in the queue that ends it.
            return self.cut_to(self.without_queue());
        }
        // One packet for each window that arrived.
        self.credit += acked;
        if self.credit >= self.window {
            self.credit -= self.window;
            self.window += self.mtu;
        }
    }

    /// The part of the window that the path holds without a queue.
    fn without_queue(&self) -> u64 {
        let (floor, rtt) = (self.floor.shortest(), self.recent().unwrap_or_default());
        let part = floor.as_secs_f64() / rtt.max(floor).max(Duration::from_nanos(1)).as_secs_f64();
        // Never more than the window, so it fits.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let bytes = (self.window as f64 * part) as u64;
        bytes
    }

    fn cut_to(&mut self, window: u64) {
        self.window = window.max(PACKETS_MIN * self.mtu).min(self.window);
        self.credit = 0;
    }
}

impl Controller for Delay {
    fn on_sent(&mut self, _: Instant, _: u64, last_packet_number: u64) {
        self.sent = last_packet_number;
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, _: &RttEstimator) {
        self.acked(now, sent, bytes, app_limited);
    }

    fn on_end_acks(&mut self, _: Instant, _: u64, _: bool, largest_acked: Option<u64>) {
        if largest_acked.is_some_and(|acked| acked >= self.round_ends) {
            self.round_ends = self.sent + 1;
            self.last = std::mem::take(&mut self.this);
        }
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        self.this.lost += lost_bytes;
        if is_persistent {
            self.starting = true;
            return self.cut_to(0);
        }
        let marked = lost_bytes == 0;
        let counts = marked || self.sees_queue() || self.is_overrun();
        if counts && self.cut.is_none_or(|cut| sent > cut) {
            self.cut = Some(now);
            self.starting = false;
            self.cut_to(self.window * KEPT_TENTHS / 10);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = u64::from(new_mtu);
        self.window = self.window.max(PACKETS_MIN * self.mtu);
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.window;
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        PACKETS_INITIAL * self.mtu
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTU: u16 = 1000;
    const PATH: Duration = Duration::from_millis(20);

    /// A path that holds so many bytes in its queue, and what a controller does with it, round by round.
    struct Path {
        control: Delay,
        now: Instant,
        /// Bytes that it carries in a round trip without a queue.
        capacity: u64,
        queue: u64,
        /// Of a thousand packets, lost by chance.
        lost: u64,
        number: u64,
    }

    impl Path {
        fn new(capacity: u64, queue: u64, lost: u64) -> Self {
            let now = Instant::now();
            Self { control: Delay::new(now, MTU), now, capacity, queue, lost, number: 0 }
        }

        /// Sends a window and hears of all of it; returns the round trip.
        fn round(&mut self) -> Duration {
            let window = self.control.window();
            let waiting = window.saturating_sub(self.capacity).min(self.queue);
            let rtt = PATH + PATH.mul_f64(waiting as f64 / self.capacity as f64);
            let (sent, packets) = (self.now, window / u64::from(MTU));
            let over = window.saturating_sub(self.capacity + self.queue) / u64::from(MTU);
            let first = self.number;
            self.number += packets;
            self.control.on_sent(sent, window, self.number - 1);
            self.now += rtt;
            for packet in first..self.number {
                let is_lost = packet - first < over || (packet * 7919) % 1000 < self.lost;
                if is_lost {
                    self.control.on_congestion_event(self.now, sent, false, u64::from(MTU));
                } else {
                    self.control.acked(self.now, sent, u64::from(MTU), false);
                }
            }
            self.control.on_end_acks(self.now, 0, false, Some(self.number - 1));
            rtt
        }

        fn run(&mut self, rounds: usize) -> Duration {
            (0..rounds).map(|_| self.round()).max().unwrap_or_default()
        }
    }

    #[test]
    fn loss_by_chance_does_not_keep_the_window_from_what_the_path_holds() {
        for lost in [0, 10, 30, 50] {
            let mut path = Path::new(1_000_000, 4_000_000, lost);
            path.run(30);
            assert!(path.control.window() >= 850_000, "{lost} of a thousand lost: {}", path.control.window());
        }
    }

    #[test]
    fn a_queue_ends_the_start_and_stays_short_for_long() {
        let mut path = Path::new(100_000, 3_000_000, 0);
        path.run(10);
        let worst = path.run(20);
        assert!(worst < PATH * 8 / 5, "a round trip of {worst:?} over a path of {PATH:?}");
        assert!(path.control.window() >= 100_000, "and the path is full: {}", path.control.window());
    }

    #[test]
    fn what_a_full_queue_loses_cuts_the_window_once_a_round() {
        let mut path = Path::new(100_000, 30_000, 0);
        path.run(60);
        for _ in 0..100 {
            let before = path.control.window();
            path.round();
            let after = path.control.window();
            assert!(after >= before * KEPT_TENTHS / 10 - 1, "{before} to {after}");
            assert!(after <= 100_000 + 30_000 + 20 * u64::from(MTU), "{after}");
        }
    }

    #[test]
    fn a_path_that_loses_a_third_is_overrun_whatever_its_round_trip() {
        let mut path = Path::new(10_000_000, 0, 330);
        path.run(60);
        assert!(path.control.window() <= PACKETS_INITIAL * u64::from(MTU), "{}", path.control.window());
    }

    #[test]
    fn a_mark_counts_and_persistent_congestion_begins_anew() {
        let mut path = Path::new(1_000_000, 0, 0);
        path.run(6);
        let before = path.control.window();
        path.control.on_congestion_event(path.now, path.now, false, 0);
        assert_eq!(path.control.window(), before * KEPT_TENTHS / 10);
        path.control.on_congestion_event(path.now, path.now, true, 1000);
        assert_eq!(path.control.window(), PACKETS_MIN * u64::from(MTU));
        path.run(12);
        assert!(path.control.window() >= before, "{} of {before}", path.control.window());
    }
}
