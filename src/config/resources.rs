//! What `auto` means on this machine: the memory that this process may use.
//!
//! Cores are counted by the standard library, see [`Environment::cores`].

use std::path::{Path, PathBuf};

use super::environment::Environment;

const CGROUP_FOLDER: &str = "/sys/fs/cgroup";

/// The least of the machine's memory and of the limits of every control group that this process is in, in bytes.
///
/// Reads both versions of control groups (kernel documentation: `admin-guide/cgroup-v2.rst` and
/// `cgroup-v1/memory.rst`). `None` where nothing can be read, as on other systems than Linux.
pub(super) fn memory_limit_bytes(environment: &dyn Environment) -> Option<u64> {
    let groups = read_text(environment, Path::new("/proc/self/cgroup")).unwrap_or_default();
    let from_groups = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        match controllers {
            "" => least_limit(environment, Path::new(CGROUP_FOLDER), path, "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                least_limit(environment, &Path::new(CGROUP_FOLDER).join("memory"), path, "memory.limit_in_bytes")
            }
            _ => None,
        }
    });
    from_groups.chain(machine_bytes(environment)).min()
}

/// The least limit in `file` of the group `path` and of the groups around it.
///
/// In a container the path may be that of the host, which is not there; the folder's own file is then the container's.
fn least_limit(environment: &dyn Environment, folder: &Path, path: &str, file: &str) -> Option<u64> {
    let group = folder.join(path.trim_start_matches('/'));
    let around: Vec<PathBuf> =
        group.ancestors().take_while(|ancestor| ancestor.starts_with(folder)).map(|a| a.join(file)).collect();
    // "max" and version 1's number for "no limit", which exceeds any machine, both lose against the machine's memory.
    around.iter().filter_map(|file| read_text(environment, file)?.trim().parse::<u64>().ok()).min()
}

fn machine_bytes(environment: &dyn Environment) -> Option<u64> {
    let text = read_text(environment, Path::new("/proc/meminfo"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn read_text(environment: &dyn Environment, path: &Path) -> Option<String> {
    String::from_utf8(environment.read_file(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::TestEnvironment;
    use super::*;

    const MEMINFO: (&str, &str) = ("/proc/meminfo", "MemTotal:       8000000 kB\nMemFree: 1 kB\n");

    #[test]
    fn the_least_limit_counts() {
        let v2 = ("/proc/self/cgroup", "0::/app/node\n");
        let v1 = ("/proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/x\n0::/\n");
        for (name, files, bytes) in [
            ("nothing to read", vec![], None),
            ("machine only", vec![MEMINFO], Some(8_192_000_000)),
            (
                "no limit in version 2",
                vec![MEMINFO, v2, ("/sys/fs/cgroup/app/node/memory.max", "max\n")],
                Some(8_192_000_000),
            ),
            (
                "a limit around the own group",
                vec![
                    v2,
                    MEMINFO,
                    ("/sys/fs/cgroup/app/node/memory.max", "2000\n"),
                    ("/sys/fs/cgroup/app/memory.max", "1000\n"),
                ],
                Some(1000),
            ),
            ("the path of the host", vec![v2, MEMINFO, ("/sys/fs/cgroup/memory.max", "3000\n")], Some(3000)),
            ("version 1", vec![v1, ("/sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", "4000")], Some(4000)),
            (
                "no limit in version 1",
                vec![v1, MEMINFO, ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")],
                Some(8_192_000_000),
            ),
            ("nonsense", vec![("/proc/meminfo", "MemTotal: much"), ("/proc/self/cgroup", "::\n:\n\n")], None),
        ] {
            let mut environment = TestEnvironment::bare();
            for (path, content) in files {
                environment = environment.with_file(path, content);
            }
            assert_eq!(memory_limit_bytes(&environment), bytes, "{name}");
        }
    }
}
