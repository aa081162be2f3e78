//! A *profile* says where the time of an iteration goes: `bench --profile`.
//!
//! The thread that starts a profile records spans of [`Part`]s in [`Phase`]s. A span is counted
//! without the spans inside it. Where no profile runs, a span costs one read of a flag.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What an iteration is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Forward,
    Backward,
    Optimizer,
}

impl Phase {
    pub const ALL: [(Self, &str); 3] =
        [(Self::Forward, "forward"), (Self::Backward, "backward"), (Self::Optimizer, "optimizer")];
}

/// Kinds of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Matrix products of linear layers, Gram matrices and gradients.
    Product,
    /// Matrix products with the vocabulary's matrix.
    HeadProduct,
    /// Softmax, KL and their gradients over the vocabulary.
    Head,
    /// Attention, with its small matrix products.
    Attention,
    Norm,
    Activation,
    /// Biases and residual streams.
    Bias,
    Embedding,
    /// The optimizer's updates.
    Update,
    /// Everything else: candle's additions, copies, random numbers, bookkeeping.
    Other,
}

impl Part {
    pub const ALL: [(Self, &str); 10] = [
        (Self::Product, "products"),
        (Self::HeadProduct, "head, products"),
        (Self::Head, "head, elementwise"),
        (Self::Attention, "attention"),
        (Self::Norm, "norms"),
        (Self::Activation, "activations"),
        (Self::Bias, "biases"),
        (Self::Embedding, "embedding"),
        (Self::Update, "updates"),
        (Self::Other, "other"),
    ];
}

/// Seconds by part and phase, and the operations of the products.
#[derive(Debug, Clone, Default)]
pub struct Profile {
    seconds: [[f64; Phase::ALL.len()]; Part::ALL.len()],
    /// Wall time of the profile.
    pub wall: f64,
    /// Floating-point operations of all products, those of attention included.
    pub operations: f64,
    /// Operations in [`Part::Product`] and [`Part::HeadProduct`].
    pub large_operations: f64,
    /// Processor time of all threads.
    pub processor: f64,
}

impl Profile {
    /// Seconds of a part in one phase.
    pub fn seconds(&self, part: Part, phase: Phase) -> f64 {
        self.seconds[part as usize][phase as usize]
    }

    /// Seconds of a part in all phases.
    pub fn total(&self, part: Part) -> f64 {
        self.seconds[part as usize].iter().sum()
    }
}

static RUNNING: AtomicBool = AtomicBool::new(false);
/// Counted since the program began.
static OPERATIONS: AtomicU64 = AtomicU64::new(0);
static LARGE_OPERATIONS: AtomicU64 = AtomicU64::new(0);

/// Floating-point operations of all products of our kernels since the program began. Products on
/// other devices are not counted.
pub fn operations() -> u64 {
    OPERATIONS.load(Ordering::Relaxed)
}

struct Recorder {
    profile: Profile,
    /// [`OPERATIONS`] and [`LARGE_OPERATIONS`] when the profile began.
    counted: [u64; 2],
    phase: Phase,
    parts: Vec<Part>,
    since: Instant,
    begun: Instant,
    processor: Duration,
}

impl Recorder {
    /// Adds the time since the last change to the part and phase that it was spent in.
    fn settle(&mut self) {
        let now = Instant::now();
        let part = self.parts.last().copied().unwrap_or(Part::Other);
        self.profile.seconds[part as usize][self.phase as usize] +=
            (now - self.since).as_secs_f64();
        self.since = now;
    }
}

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

fn record<R>(work: impl FnOnce(&mut Recorder) -> R) -> Option<R> {
    RUNNING
        .load(Ordering::Relaxed)
        .then(|| RECORDER.with_borrow_mut(|r| r.as_mut().map(work)))
        .flatten()
}

/// Begins a profile on this thread.
pub fn start() {
    let now = Instant::now();
    let recorder = Recorder {
        profile: Profile::default(),
        counted: [operations(), LARGE_OPERATIONS.load(Ordering::Relaxed)],
        phase: Phase::Forward,
        parts: Vec::new(),
        since: now,
        begun: now,
        processor: processor_time(),
    };
    RECORDER.set(Some(recorder));
    RUNNING.store(true, Ordering::Relaxed);
}

/// Ends the profile of this thread. `None` if there is none.
pub fn stop() -> Option<Profile> {
    RUNNING.store(false, Ordering::Relaxed);
    let mut recorder = RECORDER.take()?;
    recorder.settle();
    Some(Profile {
        wall: recorder.begun.elapsed().as_secs_f64(),
        operations: (operations() - recorder.counted[0]) as f64,
        large_operations: (LARGE_OPERATIONS.load(Ordering::Relaxed) - recorder.counted[1]) as f64,
        processor: (processor_time() - recorder.processor).as_secs_f64(),
        ..recorder.profile
    })
}

/// Work of one part. It ends when this is dropped.
pub struct Span(());

/// Begins a span of a part.
pub fn span(part: Part) -> Span {
    record(|r| {
        r.settle();
        r.parts.push(part);
    });
    Span(())
}

impl Drop for Span {
    fn drop(&mut self) {
        record(|r| {
            r.settle();
            r.parts.pop();
        });
    }
}

/// Begins a span of a large product: of the head inside a span of the head, else of another layer.
pub fn product_span() -> Span {
    record(|r| {
        r.settle();
        let of_head = r.parts.last() == Some(&Part::Head);
        r.parts.push(if of_head { Part::HeadProduct } else { Part::Product });
    });
    Span(())
}

/// A phase. When this is dropped, the phase before it goes on.
pub struct InPhase(Option<Phase>);

fn change_phase(to: Phase) -> Option<Phase> {
    record(|r| {
        r.settle();
        std::mem::replace(&mut r.phase, to)
    })
}

/// Begins a phase.
pub fn phase(phase: Phase) -> InPhase {
    InPhase(change_phase(phase))
}

impl Drop for InPhase {
    fn drop(&mut self) {
        self.0.map(change_phase);
    }
}

/// Counts a product of (m, k) and (k, n), on any thread.
pub fn count_product(m: usize, k: usize, n: usize, large: bool) {
    let operations = 2 * (m * k * n) as u64;
    OPERATIONS.fetch_add(operations, Ordering::Relaxed);
    if large {
        LARGE_OPERATIONS.fetch_add(operations, Ordering::Relaxed);
    }
}

/// What the system's accounting says of this process.
#[cfg(unix)]
pub fn usage() -> libc::rusage {
    // SAFETY: a zeroed `rusage` is a valid value, and the call only fills it in.
    unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    }
}

/// Processor time of all threads of this process, or 0 on systems that don't tell it.
fn processor_time() -> Duration {
    #[cfg(unix)]
    {
        let usage = usage();
        let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
        time(usage.ru_utime) + time(usage.ru_stime)
    }
    #[cfg(not(unix))]
    Duration::ZERO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_counted_once_and_where_it_belongs() {
        start();
        let nap = || std::thread::sleep(Duration::from_millis(20));
        {
            let _backward = phase(Phase::Backward);
            let _head = span(Part::Head);
            nap();
            let _product = span(Part::HeadProduct);
            nap();
        }
        nap();
        count_product(2, 3, 4, true);
        let profile = stop().expect("a profile");
        assert!(profile.seconds(Part::Head, Phase::Backward) >= 0.02);
        assert!(profile.seconds(Part::HeadProduct, Phase::Backward) >= 0.02);
        assert_eq!(profile.seconds(Part::Head, Phase::Forward), 0.0);
        assert!(profile.seconds(Part::Other, Phase::Forward) >= 0.02, "the phase before goes on");
        let total: f64 = Part::ALL.iter().map(|(p, _)| profile.total(*p)).sum();
        assert!((total - profile.wall).abs() < 0.005, "{total} of {}", profile.wall);
        // Other tests of this process may count products at the same time.
        assert!(profile.operations >= 48.0);
        assert!(stop().is_none());
    }
}
