//! What the program asks of its allocator.

#![cfg(not(any(feature = "mimalloc", feature = "system-allocator")))]

use std::fs;

use crate::kit::node::Setup;
use crate::kit::origin::Origin;

/// The settings are a text under a name that the allocator looks for: under another name nobody would notice.
#[tokio::test]
async fn the_allocator_reads_its_settings() {
    let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let origin = Origin::start().await;
    let node = Setup::group(&format!("origin: '{}'", origin.url())).start();
    let threads = fs::read_dir(format!("/proc/{}/task", node.pid())).unwrap();
    // A thread may end meanwhile.
    let name = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("comm")).ok();
    let names: Vec<String> = threads.filter_map(|thread| name(thread.ok()?)).collect();
    assert!(names.iter().any(|name| name.trim() == "jemalloc_bg_thd"), "{names:?}");
    // Where everybody gets large pages nobody asks, and where nobody gets them neither.
    if enabled.contains("[madvise]") {
        let maps = fs::read_to_string(format!("/proc/{}/smaps", node.pid())).unwrap();
        let asked = |line: &str| line.starts_with("VmFlags:") && line.split(' ').any(|flag| flag == "hg");
        assert!(maps.lines().any(asked), "no large pages are asked for");
    }
}
