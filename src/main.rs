//! Arguments, allocator, exit code; everything else is the library's.

use std::process::ExitCode;

/// As quick as any, and its fragments stay small enough. Misses with a full store, a second (`make compare CASES=allocators`,
/// 7 rounds, 2026-11-22): mimalloc 32.1 k, jemalloc 33.6 k, the system's 27.7 k. Resident at 4 times a budget of 128 MiB, sizes mixed
/// (`CASES=allocators-memory`): 170, 155 and 143 MiB; of 1 GiB mimalloc takes 6 % more than the budget. The 15 MiB are not worth
/// jemalloc, whose authors have ended its development.
#[cfg(not(any(feature = "jemalloc", feature = "system-allocator")))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    groupcache_proxy::cli::main()
}
