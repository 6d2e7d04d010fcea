//! Simulation: the real cache, flights, ring, store and peer protocol of a fleet under a simulated network and clock.
//!
//! ```text
//! cargo test --test simulate -- --seeds 500 --nodes 5     seeds 0 to 499
//! cargo test --test simulate -- --seed 17                 one of them, with its last events; with --show, all of them
//! ```
//! One seed gives one run, always the same: `--twice` runs every seed twice and compares. README.md beside this file says what
//! is simulated and how, and which promises are checked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "how long the simulation takes is measured by the real clock")]
#![allow(missing_docs, reason = "nobody imports this")]

mod chart;
mod clients;
mod direct;
mod gossip;
mod hops;
mod hot;
mod invariants;
mod large;
mod network;
mod node;
mod origin;
mod planted;
mod purges;
mod races;
mod random;
mod script;
mod trace;
mod world;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::origin::Kind;
use crate::script::Report;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => return ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("simulate: {problem}");
            return ExitCode::from(2);
        }
    };
    assert!(groupcache_proxy::key::set_seed(0), "no key was hashed before");
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.with(|panics| panics.set(panics.get() + 1));
        usual(panic);
    }));
    match (options.races, options.fleet, options.hot) {
        (Some(count), ..) => races(&options, count),
        (None, Some(nodes), _) => large_fleet(&options, nodes),
        (None, None, Some(nodes)) if hot_key(&options, nodes) => ExitCode::SUCCESS,
        (None, None, Some(_)) => ExitCode::FAILURE,
        // A single seed is wanted for itself.
        (None, None, None) if !options.verbose && !hot_key(&options, options.nodes) => ExitCode::FAILURE,
        (None, None, None) => scenarios(&options),
    }
}

thread_local! {
    /// Every run has a thread for itself, so its panics are counted there, wherever they are caught.
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// What the command line asks for.
#[derive(Clone, Debug)]
struct Options {
    first: u64,
    seeds: u64,
    nodes: usize,
    steps: usize,
    twice: bool,
    /// So many interleavings of purges instead of whole runs.
    races: Option<u64>,
    /// One large fleet of so many nodes instead.
    fleet: Option<usize>,
    /// Nothing more is run once a promise was broken.
    first_broken: bool,
    /// A fleet of so many nodes of which half of all requests want one key instead.
    hot: Option<usize>,
    /// Show what happened, broken or not.
    verbose: bool,
}

impl Options {
    /// `None`: nothing is to be run. Options of the standard test runner are accepted and mean nothing.
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Options {
            first: 0,
            seeds: 500,
            nodes: 5,
            steps: 200,
            twice: false,
            races: None,
            fleet: None,
            first_broken: false,
            hot: None,
            verbose: false,
        };
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            let mut number = || {
                let value = arguments.next().ok_or(format!("{argument} wants a number"))?;
                value.parse::<u64>().map_err(|_| format!("{argument} {value}: not a number"))
            };
            match &argument[..] {
                "--seed" => (options.first, options.seeds, options.verbose) = (number()?, 1, true),
                "--first" => options.first = number()?,
                "--seeds" => options.seeds = number()?,
                "--nodes" => options.nodes = number()?.clamp(1, 16) as usize,
                "--steps" => options.steps = number()? as usize,
                "--fleet" => options.fleet = Some(number()? as usize),
                "--hot" => options.hot = Some(number()? as usize),
                "--races" => options.races = Some(number()?),
                "--show" => trace::SHOWN.store(true, Ordering::Relaxed),
                "--first-broken" => options.first_broken = true,
                "--twice" => options.twice = true,
                "--list" => {
                    println!("simulate: test");
                    return Ok(None);
                }
                "--test-threads" | "--skip" | "--format" | "--color" => drop(arguments.next()),
                _ if argument.starts_with('-') => {}
                // The name of a test in another binary.
                filter if !"simulate".contains(filter) => return Ok(None),
                _ => {}
            }
        }
        Ok(Some(options))
    }

    fn command(&self, seed: u64) -> String {
        format!("make simulate SEED={seed} NODES={} STEPS={}", self.nodes, self.steps)
    }
}

/// Runs all seeds on all processors; the first broken promise is shown with its events.
fn scenarios(options: &Options) -> ExitCode {
    if let Some(misfit) = planted::misfit().filter(|_| !options.first_broken) {
        println!("---- a bug can no longer be planted: {misfit}");
        return ExitCode::FAILURE;
    }
    let begun = Instant::now();
    let next = AtomicU64::new(options.first);
    let is_found = AtomicBool::new(false);
    let reports: Mutex<BTreeMap<u64, Report>> = Mutex::default();
    let end = options.first + options.seeds;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(options.seeds as usize);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= end || (options.first_broken && is_found.load(Ordering::SeqCst)) {
                        return;
                    }
                    let report = one(options, seed);
                    is_found.fetch_or(report.broken.is_some(), Ordering::SeqCst);
                    reports.lock().insert(seed, report);
                }
            });
        }
    });
    let reports = reports.into_inner();
    let failed: Vec<&Report> = reports.values().filter(|report| report.broken.is_some()).collect();
    for report in failed.iter().take(SHOWN_MAX) {
        show(options, report);
    }
    for report in failed.iter().skip(SHOWN_MAX) {
        let Some(broken) = &report.broken else { continue };
        println!(
            "---- seed {} ({:?}): broken promise: {}: {}",
            report.seed, report.weather, broken.promise, broken.detail
        );
    }
    if options.verbose {
        for report in reports.values() {
            println!("seed {}: {:?}, {} events, hash {:016x}", report.seed, report.weather, report.events, report.hash);
        }
    }
    let mut tally: BTreeMap<&str, u64> = BTreeMap::new();
    for report in reports.values() {
        for (word, count) in &report.tally {
            *tally.entry(word).or_default() += count;
        }
    }
    let words: Vec<String> = tally.iter().map(|(word, count)| format!("{count} {word}")).collect();
    let simulated: f64 = reports.values().map(|report| report.simulated.as_secs_f64()).sum();
    println!("answers: {}", words.join(", "));
    println!(
        "{} passed, {} failed; {} nodes, {simulated:.0} simulated seconds in {:.1}",
        reports.len() - failed.len(),
        failed.len(),
        options.nodes,
        begun.elapsed().as_secs_f64()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs so many interleavings, a thousand for each seed.
fn races(options: &Options, count: u64) -> ExitCode {
    let begun = Instant::now();
    let next = AtomicU64::new(options.first);
    let end = options.first + count.div_ceil(RACES_PER_SEED);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let failed: Mutex<BTreeMap<u64, trace::Broken>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= end || !failed.lock().is_empty() {
                        return;
                    }
                    let race = |traced| runtime().block_on(races::run(seed, RACING_NODES, RACES_PER_SEED, traced));
                    // What went wrong silently is done again in words.
                    if race(false).is_some()
                        && let Some(broken) = race(true)
                    {
                        failed.lock().insert(seed, broken);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    for (seed, broken) in &failed {
        println!("---- races of seed {seed}: broken promise: {}\n     {}", broken.promise, broken.detail);
        broken.events.iter().for_each(|line| println!("     {line}"));
        println!("     again: make simulate-races COUNT=1000 SEED={seed}");
    }
    let seconds = begun.elapsed().as_secs_f64();
    let done = (next.into_inner().min(end) - options.first) * RACES_PER_SEED;
    println!(
        "{done} interleavings in {seconds:.1} s, {:.0} in a second; {} failed",
        done as f64 / seconds,
        failed.len()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a large fleet; the chart goes to the results of the benchmarks.
fn large_fleet(options: &Options, nodes: usize) -> ExitCode {
    let begun = Instant::now();
    let (report, chart) = runtime().block_on(large::run(options.first, nodes));
    println!("{report}");
    let file = format!("{}/benches/results/fleet-{nodes}.svg", env!("CARGO_MANIFEST_DIR"));
    match std::fs::write(&file, chart) {
        Ok(()) => println!("{nodes} nodes in {:.0} s; chart: {file}", begun.elapsed().as_secs_f64()),
        Err(error) => eprintln!("simulate: {file}: {error}"),
    }
    ExitCode::SUCCESS
}

/// One key with half of all traffic, which never expires or does so every two seconds.
fn hot_key(options: &Options, nodes: usize) -> bool {
    let mut kept = true;
    for kind in [Kind::Long, Kind::Short] {
        let outcome = runtime().block_on(hot::run(options.first, nodes, kind));
        println!("{}", outcome.report);
        // In larger fleets it is other keys, of which a node owns a few more than another, that make one busy.
        kept &= outcome.failed == 0 && (nodes > SMALL_FLEET || outcome.busiest <= BUSIEST_MAX);
    }
    if !kept {
        println!("a node works more than {BUSIEST_MAX} times the mean, or requests failed");
    }
    kept
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

/// One run of a seed, or two that must be the same.
fn one(options: &Options, seed: u64) -> Report {
    let run = || {
        PANICS.with(|panics| panics.set(0));
        let runtime = runtime();
        let mut report = runtime.block_on(script::run(seed, options.nodes, options.steps));
        // What the nodes still do ends with the runtime.
        drop(runtime);
        let panics = PANICS.with(Cell::get);
        if panics > 0 && report.broken.is_none() {
            let detail = format!("{panics} panics, printed above");
            report.broken = Some(trace::Broken { promise: "no panic", detail, events: Vec::new() });
        }
        report
    };
    let mut report = run();
    if options.twice {
        let again = run();
        if (again.hash, again.events) != (report.hash, report.events) && report.broken.is_none() {
            let detail = format!("{} and {} events with different hashes", report.events, again.events);
            report.broken = Some(trace::Broken { promise: "one seed is one run", detail, events: Vec::new() });
        }
    }
    report
}

fn show(options: &Options, report: &Report) {
    let Some(broken) = &report.broken else { return };
    println!("---- seed {} ({:?}): broken promise: {}", report.seed, report.weather, broken.promise);
    println!("     {}", broken.detail);
    for line in &broken.events {
        println!("     {line}");
    }
    println!("     again: {}", options.command(report.seed));
}

/// Of the mean work of all nodes.
const BUSIEST_MAX: f64 = 1.25;
const SMALL_FLEET: usize = 16;
/// So many broken seeds are shown in full.
const SHOWN_MAX: usize = 3;
const RACES_PER_SEED: u64 = 1000;
const RACING_NODES: usize = 3;
