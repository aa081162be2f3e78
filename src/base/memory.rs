//! How much *memory* there is: what the user allows, and what the system can still give.

use std::fs;
use std::path::Path;

use anyhow::Result;
use sysinfo::{MemoryRefreshKind, System};

use crate::bail_input;

/// The most MiB that a limit may be: their bytes must be a number.
const MOST: u64 = u64::MAX >> 20;

/// The limit that the user set, in MiB. Errors (bad input) if it is not a number of them.
pub fn limit() -> Result<Option<u64>> {
    match std::env::var("IREPAIR_MEMORY_LIMIT") {
        Ok(text) => match text.trim().parse() {
            Ok(mib) if mib <= MOST => Ok(Some(mib)),
            _ => bail_input!("IREPAIR_MEMORY_LIMIT={text}: expected a number of MiB up to {MOST}"),
        },
        Err(_) => Ok(None),
    }
}

/// The bytes that the system can still give this process, or fewer where a control group or a limit
/// of the process (`ulimit -v`) allows fewer.
pub fn available() -> Option<u64> {
    match (given(), left_of_addresses()) {
        (Some(given), Some(left)) => Some(given.min(left)),
        (given, left) => given.or(left),
    }
}

/// The memory that a text takes at least, with its ids, its row and its place in a batch.
pub const OF_A_TEXT: u64 = 256;

/// Errors (bad input) if so many things of so many bytes each don't fit into memory. `flag` is what
/// asks for them.
pub fn check_room(flag: &str, count: usize, each: u64) -> Result<()> {
    let needed = (count as u64).saturating_mul(each);
    let room = match limit()? {
        Some(mib) => Some(mib << 20),
        None => available(),
    };
    if let Some(room) = room.filter(|room| *room < needed) {
        bail_input!(
            "{flag}: {count} of them take about {} MiB, {} MiB are there; lower it",
            needed >> 20,
            room >> 20
        );
    }
    Ok(())
}

/// The bytes of address space that this process may still take, if that is limited.
fn left_of_addresses() -> Option<u64> {
    #[cfg(unix)]
    {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the call fills the struct that it is given.
        let known = unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) } == 0;
        if !known || limit.rlim_cur == libc::RLIM_INFINITY {
            return None;
        }
        let sizes = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let taken = sizes.lines().find_map(|line| {
            let kib = line.strip_prefix("VmSize:")?.trim().strip_suffix("kB")?;
            kib.trim().parse::<u64>().ok()
        });
        Some(limit.rlim_cur.saturating_sub(taken.unwrap_or(0) << 10))
    }
    #[cfg(not(unix))]
    None
}

/// The bytes that the system and its control groups can still give this process.
fn given() -> Option<u64> {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let free = Some(system.available_memory()).filter(|bytes| *bytes > 0)?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(left_by_groups(Path::new("/sys/fs/cgroup"), &groups).map_or(free, |left| left.min(free)))
}

/// The bytes that this process may still take: what the system can give, or what the user allows if
/// that is less.
pub fn left() -> Result<Option<u64>> {
    let allowed = limit()?.map(|mib| mib.saturating_mul(1 << 20));
    Ok(available().into_iter().chain(allowed).min())
}

/// The bytes that control groups leave a process: the least over its group and all groups above.
/// `groups` is the text of `/proc/self/cgroup`, in version 1 or 2.
///
/// `sysinfo::System::cgroup_limits` reads the topmost group only, and it counts file pages as used.
/// So it misses the limit of a batch job, and says that a group is full when it has read a model.
fn left_by_groups(mounted: &Path, groups: &str) -> Option<u64> {
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (root, [limit, usage], file_pages) = if controllers.is_empty() {
            (mounted.to_owned(), ["memory.max", "memory.current"], "inactive_file")
        } else if controllers.split(',').any(|c| c == "memory") {
            (
                mounted.join("memory"),
                ["memory.limit_in_bytes", "memory.usage_in_bytes"],
                "total_inactive_file",
            )
        } else {
            continue;
        };
        // In a container the path may be one that exists only outside of it. Then the root is the
        // container's own group.
        let own = root.join(path.trim_start_matches('/'));
        for group in own.ancestors().take_while(|group| group.starts_with(&root)) {
            let number =
                |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
            let Some(limit) = number(limit) else { continue };
            let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
            // The kernel counts the pages of files that were read as used, but takes them back
            // first.
            let given_back = stat
                .lines()
                .find_map(|l| l.strip_prefix(file_pages)?.trim().parse::<u64>().ok())
                .unwrap_or(0);
            let used = number(usage).unwrap_or(0).saturating_sub(given_back);
            let left = limit.saturating_sub(used);
            least = Some(least.map_or(left, |least| least.min(left)));
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_groups_leave_the_least_of_all_above() {
        let dir = tempfile::tempdir().expect("a folder");
        let group = |path: &str, files: &[(&str, &str)]| {
            let group = dir.path().join(path);
            std::fs::create_dir_all(&group).expect("a group");
            for (name, text) in files {
                std::fs::write(group.join(name), text).expect("a file of it");
            }
        };
        let left = |groups: &str| left_by_groups(dir.path(), groups);
        assert_eq!(left("0::/"), None);
        // Version 2: the job's group has no limit of its own, but the user's group above it has
        // one. Files that were read don't count.
        group("user/job", &[("memory.max", "max\n"), ("memory.current", "900\n")]);
        let stat = "anon 300\ninactive_file 600\nactive_file 1\n";
        group(
            "user",
            &[("memory.max", "1000\n"), ("memory.current", "900\n"), ("memory.stat", stat)],
        );
        assert_eq!(left("0::/user/job\n"), Some(700));
        group("user/job", &[("memory.max", "950\n")]);
        assert_eq!(left("0::/user/job\n"), Some(50));
        // Version 1, and then a path that exists only outside the container.
        let files = [
            ("memory.limit_in_bytes", "500"),
            ("memory.usage_in_bytes", "450"),
            ("memory.stat", "x 1"),
        ];
        group("memory/inside", &files);
        assert_eq!(left("9:name=systemd:/\n4:cpu,memory:/inside\n0::/\n"), Some(50));
        group(
            "memory",
            &[("memory.limit_in_bytes", "9223372036854771712"), ("memory.usage_in_bytes", "1")],
        );
        assert_eq!(left("4:memory:/outside/abc\n"), Some(9_223_372_036_854_771_711));
        group("memory", &[("memory.usage_in_bytes", "9999999999999999999")]);
        assert_eq!(left("4:memory:/\n"), Some(0));
    }
}
