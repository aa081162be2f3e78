//! How much memory there is: what the user allows, what the system would still give.

use std::path::Path;

use anyhow::Result;

use crate::bail_input;

/// The limit that the user set, in MiB. Errors (bad input) if it is no number.
pub fn limit() -> Result<Option<u64>> {
    match std::env::var("IREPAIR_MEMORY_LIMIT") {
        Ok(text) => match text.parse() {
            Ok(mib) => Ok(Some(mib)),
            Err(_) => bail_input!("IREPAIR_MEMORY_LIMIT={text}: expected a number of MiB"),
        },
        Err(_) => Ok(None),
    }
}

/// Memory that the system would still give, in bytes (Linux: `MemAvailable`, or less where a control group allows less).
pub fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    let system = line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(room(Path::new("/sys/fs/cgroup"), &groups).map_or(system, |group| group.min(system)))
}

/// What the control groups of a process leave it, in bytes: the least over its group and those above. `groups`:
/// `/proc/self/cgroup`, of either version.
fn room(mounted: &Path, groups: &str) -> Option<u64> {
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (root, [limit, usage], idle) = if controllers.is_empty() {
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
        // Within a container the path may be one of the world outside; the root is then its own group.
        let own = root.join(path.trim_start_matches('/'));
        for group in own.ancestors().take_while(|group| group.starts_with(&root)) {
            let number = |name: &str| {
                std::fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok()
            };
            let Some(limit) = number(limit) else { continue };
            let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
            // Pages of files that it has read count as used, and are given up first.
            let given_up = stat
                .lines()
                .find_map(|l| l.strip_prefix(idle)?.trim().parse::<u64>().ok())
                .unwrap_or(0);
            let used = number(usage).unwrap_or(0).saturating_sub(given_up);
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
        let left = |groups: &str| room(dir.path(), groups);
        assert_eq!(left("0::/"), None);
        // Version 2: the job's group has no limit of its own; that of the user above has. Files that were read don't count.
        group("user/job", &[("memory.max", "max\n"), ("memory.current", "900\n")]);
        let stat = "anon 300\ninactive_file 600\nactive_file 1\n";
        group(
            "user",
            &[("memory.max", "1000\n"), ("memory.current", "900\n"), ("memory.stat", stat)],
        );
        assert_eq!(left("0::/user/job\n"), Some(700));
        group("user/job", &[("memory.max", "950\n")]);
        assert_eq!(left("0::/user/job\n"), Some(50));
        // Version 1, and a path that only the world outside a container has.
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
