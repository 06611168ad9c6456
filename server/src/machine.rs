//! What the operating system gives this process: cores and memory.

use std::fs::read_to_string;

/// Cores this process may use at once, its scheduling mask and CPU quota considered.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// The numbers of all cores, when this process may use every core of the machine without a quota;
/// else `None`.
pub fn all_cores() -> Option<Vec<usize>> {
    unbound_cores().filter(|online| online.len() == cores())
}

/// Whether this process is bound to some of the machine's cores, as launchers of several processes
/// do. Not so where it is not known.
pub fn is_bound_to_cores() -> bool {
    cfg!(target_os = "linux") && unbound_cores().is_none()
}

/// All cores of the machine, if this process may run on every one.
fn unbound_cores() -> Option<Vec<usize>> {
    let status = read_to_string("/proc/self/status").ok()?;
    let allowed = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:"))?;
    let online = read_to_string("/sys/devices/system/cpu/online").ok()?;
    let (allowed, online) = (parse_list(allowed)?, parse_list(&online)?);
    online.iter().all(|core| allowed.contains(core)).then_some(online)
}

/// Bytes that can be had without swapping, within the limit of a container; `None` where it is not
/// known.
pub fn available_memory() -> Option<u64> {
    let meminfo = read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let free = kib.checked_mul(1024)?;
    Some(container_room().map_or(free, |room| room.min(free)))
}

/// What a memory limit of the control group (version 2) leaves.
fn container_room() -> Option<u64> {
    let number = |path: &str| read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limit = number("/sys/fs/cgroup/memory.max")?;
    let used = number("/sys/fs/cgroup/memory.current")?;
    // Pages of files count as used, but make room when needed.
    let stat = read_to_string("/sys/fs/cgroup/memory.stat").ok()?;
    let file_pages = stat.lines().find_map(|l| l.strip_prefix("file ")?.trim().parse().ok());
    Some(limit.saturating_sub(used.saturating_sub(file_pages.unwrap_or(0))))
}

/// Reads "0-3,8,10-11".
fn parse_list(text: &str) -> Option<Vec<usize>> {
    const CORES_MAX: usize = 65_536;
    let mut cores = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= CORES_MAX {
            return None;
        }
        cores.extend(first..=last);
    }
    Some(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_lists_are_read_and_nonsense_is_not() {
        assert_eq!(parse_list(" 0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_list("3"), Some(vec![3]));
        for text in ["", "a", "3-1", "0-99999999"] {
            assert_eq!(parse_list(text), None, "{text}");
        }
    }

    #[test]
    fn all_cores_are_at_least_one_and_no_more_than_usable() {
        assert!(all_cores().is_none_or(|list| !list.is_empty() && list.len() <= cores()));
    }
}
