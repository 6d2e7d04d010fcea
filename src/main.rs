//! Arguments, allocator, exit code; everything else is the library's.

use std::process::ExitCode;

/// Bodies of all sizes come and go for weeks: its fragments stay small (architecture: memory).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    groupcache_proxy::cli::main()
}
