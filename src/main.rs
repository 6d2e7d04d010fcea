//! Arguments, allocator, exit code; everything else is the library's.

use std::process::ExitCode;

/// Bodies of all sizes come and go for weeks: its fragments stay small. `make compare CASES=allocators,allocators-memory` has the
/// alternatives beside it.
#[cfg(not(any(feature = "jemalloc", feature = "system-allocator")))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    groupcache_proxy::cli::main()
}
