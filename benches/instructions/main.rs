//! Instructions of the small operations, counted by valgrind's callgrind and compared with a record.
//!
//! ```text
//! cargo bench --bench instructions                       counts, and fails when one grew by more than a tenth
//! cargo bench --bench instructions -- --record           writes benches/instructions.toml anew
//! cargo bench --bench instructions -- --profile NAME     the functions that one operation spends its instructions in
//! cargo bench --bench instructions -- --only NAME        only the operations whose name contains this
//! ```
//! A count is the difference between a long and a short run of this program, divided by the difference in operations. Only
//! what [`measured`] does is counted: setting up a million objects takes a thousand times the instructions of a purge, and
//! their random hashes and identities move that by more than a purge. Counts differ a little between processors (the C
//! library chooses its copies), and more between compilers: by another one than the record's, they are shown and compared,
//! and nothing fails.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "it measures, and ends when something is wrong"
)]

#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use support::operations::{OPERATIONS, Operation, Run};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value_of = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).map(String::as_str)
    };
    if let Some(name) = value_of(RUN) {
        let count = arguments.last().and_then(|count| count.parse().ok()).unwrap_or(1);
        return match OPERATIONS.iter().find(|operation| operation.name == name) {
            Some(operation) => {
                measured((operation.prepare)(), count);
                ExitCode::SUCCESS
            }
            None => ExitCode::FAILURE,
        };
    }
    if Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("valgrind is not installed (package valgrind)");
        return ExitCode::FAILURE;
    }
    if let Some(name) = value_of("--profile") {
        return profile(name);
    }
    let wanted = value_of("--only").unwrap_or("");
    let recording = arguments.iter().any(|argument| argument == "--record");
    compare(wanted, recording)
}

/// The part of a run that callgrind counts, which knows it by this name.
#[inline(never)]
fn measured(mut run: Run, count: u64) {
    run(count);
}

fn compare(wanted: &str, recording: bool) -> ExitCode {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.toml");
    let (recorded, recorded_by) = read_record(&path);
    let compiler = compiler();
    let comparable = recorded_by.as_deref().is_none_or(|recorded_by| recorded_by == compiler);
    let mut counted = recorded.clone();
    counted.retain(|name, _| OPERATIONS.iter().any(|operation| operation.name == name));
    let mut grown = 0;
    println!("{:44} {:>12} {:>12}", "instructions for one", "now", "recorded");
    for operation in OPERATIONS.iter().filter(|operation| operation.name.contains(wanted)) {
        let now = count(operation);
        let before = recorded.get(operation.name).copied();
        let too_many = before.is_some_and(|before| now > before + before / GROWTH_SHARE);
        grown += usize::from(too_many);
        let remark = match before {
            Some(_) if too_many => "  GREW BY MORE THAN A TENTH",
            None => "  not recorded",
            _ => "",
        };
        println!("{:44} {now:>12} {:>12}{remark}", operation.name, before.map_or(String::new(), |n| n.to_string()));
        counted.insert(operation.name.to_owned(), now);
    }
    if let (Some(bare), Some(hit)) = (counted.get("lane/bare"), counted.get("lane/hit")) {
        println!("lane/hit is {:.2} x lane/bare", *hit as f64 / *bare as f64);
    }
    if recording {
        if !comparable && !wanted.is_empty() {
            eprintln!("the other counts are of another compiler: record all of them");
            return ExitCode::FAILURE;
        }
        let lines: String = counted.iter().map(|(name, count)| format!("\"{name}\" = {count}\n")).collect();
        if let Err(error) = std::fs::write(&path, format!("{RECORD_HEAD}compiler = \"{compiler}\"\n{lines}")) {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        return ExitCode::SUCCESS;
    }
    if !comparable {
        let recorded_by = recorded_by.unwrap_or_default();
        println!(
            "NOT CHECKED: the record is of {recorded_by}, this is {compiler}; record all counts anew to check again"
        );
        return ExitCode::SUCCESS;
    }
    if grown > 0 {
        eprintln!("{grown} counts grew by more than a tenth. If that is right, record them in the same commit.");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// `rustc 1.95.0`: what cargo compiled this program with.
fn compiler() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output().expect("the compiler that cargo used");
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    version.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// The counts, and the compiler that they are of.
fn read_record(path: &Path) -> (BTreeMap<String, u64>, Option<String>) {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let compiler = text.lines().find_map(|line| line.strip_prefix("compiler = "));
    let entry = |line: &str| {
        let (name, count) = line.split_once(" = ")?;
        Some((name.trim_matches('"').to_owned(), count.parse().ok()?))
    };
    (text.lines().filter_map(entry).collect(), compiler.map(|name| name.trim_matches('"').to_owned()))
}

fn count(operation: &Operation) -> u64 {
    let [few, many] = [FEW, MANY].map(|times| total(operation, times));
    many.saturating_sub(few) / (MANY - FEW)
}

/// All instructions of a process that does the operation so many times.
fn total(operation: &Operation, times: u64) -> u64 {
    let output = callgrind(operation.name, times, Path::new("/dev/null"));
    // "==123== Collected : 4567"
    let collected = output.lines().find_map(|line| line.split_once("Collected :"));
    collected.and_then(|(_, count)| count.trim().parse().ok()).unwrap_or_else(|| panic!("no count in: {output}"))
}

fn callgrind(name: &str, times: u64, out: &Path) -> String {
    let program: PathBuf = std::env::current_exe().expect("a program has a path");
    let output = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--toggle-collect=instructions::measured*",
            &format!("--callgrind-out-file={}", out.display()),
        ])
        .arg(program)
        .args([RUN, name, &times.to_string()])
        .output()
        .expect("valgrind was there a moment ago");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn profile(name: &str) -> ExitCode {
    let out = std::env::temp_dir().join(format!("callgrind.{}", std::process::id()));
    callgrind(name, MANY * 4, &out);
    let shown = Command::new("callgrind_annotate").args(["--threshold=98"]).arg(&out).status();
    let _ = std::fs::remove_file(&out);
    match shown {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

const RUN: &str = "--run-operation";
const FEW: u64 = 200;
const MANY: u64 = 2200;
/// A count may grow by one part in this many.
const GROWTH_SHARE: u64 = 10;
const RECORD_HEAD: &str = "# Instructions of one operation, as `cargo bench --bench instructions -- --record` counted them. A count that grows by\n\
    # more than a tenth fails the check unless this file changes in the same commit.\n";
