//! Arguments, allocator, exit code; everything else is the library's.

use std::process::ExitCode;

/// As quick as mimalloc with misses, and as close to its budget as the system's, which is slower (`make compare
/// CASES=allocators,allocators-memory ROUNDS=5 SECONDS=1`, 2026-11-22): misses a second with a full store 34.6 k, mimalloc
/// 33.4 k, the system's 27.9 k; resident at 4 times a budget of 128 MiB, sizes mixed, 148, 174 and 146 MiB.
#[cfg(not(any(feature = "mimalloc", feature = "system-allocator")))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What the allocator reads before `main`; `_RJEM_MALLOC_CONF` in the environment overrides it.
///
/// - `thp:always`: it asks the system for pages of 2 MiB. Among a million objects each hit touches some six places, and pages of
///   4 KiB have to be looked up each time: 134 k hits a second with it, 121 k without.
/// - `cache_oblivious:false`: a block of more than 14 KiB takes what [`allocated_bytes`](groupcache_proxy::memory::allocated_bytes)
///   says and not a page more.
/// - `dirty_decay_ms`, `background_thread`: what was freed goes back to the system within a second, even when nothing is
///   allocated any more. With the usual ten seconds, what a burst left stayed through the next one.
///
/// Only the attribute is `unsafe`: the name must be nobody else's, and nothing must be there that its reader does not expect.
/// jemalloc declares the name for this very purpose, as a weak pointer to a text that ends with a zero byte, and that is what a
/// reference to such an array is. No pointer is followed on our side, and nothing is written.
#[cfg(not(any(feature = "mimalloc", feature = "system-allocator")))]
#[allow(unsafe_code, reason = "the only way to be read before the first allocation; see above")]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_SETTINGS: &[u8; 101] =
    b"thp:always,cache_oblivious:false,dirty_decay_ms:1000,background_thread:true,max_background_threads:1\0";

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    groupcache_proxy::cli::main()
}
