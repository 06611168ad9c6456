//! The ranks of one process: threads that lay their parts side by side and each add them all up.

use super::{Communicator, expect_columns, part_range};
use crate::ops::join_columns::reference::place_columns;
use crate::{DType, KernelError, Tensor};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
use std::time::{Duration, Instant};

/// A rank that waits longer than this for the others gives them up. The rank group's own watch is
/// sooner; this one is for threads that nobody watches.
pub const WAIT_MAX: Duration = Duration::from_secs(60);
/// How often a rank looks for the others before it sleeps: some ten microseconds, since ranks of
/// equal work arrive close together.
const SPINS_MAX: u32 = 2_000;

/// One rank's link to the others of its process.
pub struct Local {
    rank: usize,
    shared: Arc<Shared>,
    /// Which of the two tables of parts the next exchange uses.
    turn: usize,
}

/// Ends the waiting of all ranks of a group, for whoever watches them.
#[derive(Clone)]
pub struct Breaker(Arc<Shared>);

struct Shared {
    world_size: usize,
    wait_max: Duration,
    /// Two tables, used in turns: a rank may write the next part while others still read this one.
    parts: [Vec<RwLock<Vec<f32>>>; 2],
    barrier: Barrier,
}

/// Links of a group of threads, in rank order.
pub fn group(world_size: usize) -> Vec<Local> {
    group_with_wait(world_size, WAIT_MAX)
}

/// As `group`, with another limit to one wait.
pub fn group_with_wait(world_size: usize, wait_max: Duration) -> Vec<Local> {
    assert!(world_size > 0, "a group has at least one rank");
    let table = || (0..world_size).map(|_| RwLock::default()).collect();
    let parts = [table(), table()];
    let shared = Arc::new(Shared { world_size, wait_max, parts, barrier: Barrier::default() });
    (0..world_size).map(|rank| Local { rank, shared: shared.clone(), turn: 0 }).collect()
}

impl Local {
    pub fn breaker(&self) -> Breaker {
        Breaker(self.shared.clone())
    }

    /// Lays `own` beside the parts of the other ranks and waits until all are there.
    fn lay_down(&mut self, own: &[f32]) -> Result<(), KernelError> {
        {
            let mut part = write(&self.shared.parts[self.turn][self.rank]);
            part.clear();
            part.extend_from_slice(own);
        }
        self.shared.barrier.wait(self.rank, self.shared.world_size, self.shared.wait_max)
    }

    /// Reads what all have laid down; an error is one for the whole group.
    fn take(
        &mut self,
        read: impl FnOnce(&[RwLock<Vec<f32>>]) -> Result<(), String>,
    ) -> Result<(), KernelError> {
        read(&self.shared.parts[self.turn]).map_err(|error| {
            self.shared.barrier.lose(&error);
            KernelError::Device(error)
        })?;
        self.turn = 1 - self.turn;
        Ok(())
    }
}

impl Breaker {
    /// From now on every exchange of the group fails with `reason`, also those under way.
    pub fn trip(&self, reason: &str) {
        self.0.barrier.lose(reason);
    }
}

impl Communicator for Local {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.shared.world_size
    }

    /// Numbers: the same bits on every rank. Memory: every rank reads all parts.
    /// Errors: `DType` unless F32; `Device` when a rank has left, came with another length, or did
    /// not come in time. After an error every further sum fails too.
    fn all_reduce_sum(&mut self, x: &mut Tensor) -> Result<(), KernelError> {
        if x.dtype() != DType::F32 {
            let (op, what) = ("all_reduce_sum", "x");
            let (got, expected) = (x.dtype().name(), "F32");
            return Err(KernelError::DType { op, what, got, expected });
        }
        self.lay_down(x.f32())?;
        self.take(|parts| {
            let (first, rest) = parts.split_first().expect("a group has at least one rank");
            add_in_order(x.f32_mut(), &read(first), rest)
        })
    }

    /// Memory: every rank reads all parts. Errors: as `all_reduce_sum`, and `Shape`.
    fn all_gather_columns(&mut self, out: &mut Tensor, part: &Tensor) -> Result<(), KernelError> {
        let world_size = self.shared.world_size;
        expect_columns(out, part, self.rank, world_size)?;
        self.lay_down(part.f32())?;
        self.take(|parts| {
            for (rank, part) in parts.iter().enumerate() {
                let (columns, part) = (part_range(out.row_len(), rank, world_size), read(part));
                let expected = out.rows() * columns.len();
                if part.len() != expected {
                    return Err(format!("rank {rank} has {} values, not {expected}", part.len()));
                }
                place_columns(out, columns, &part);
            }
            Ok(())
        })
    }
}

impl Drop for Local {
    /// Whoever waits for this rank would wait for ever.
    fn drop(&mut self) {
        self.shared.barrier.lose(&format!("rank {} has left the group", self.rank));
    }
}

fn add_in_order(out: &mut [f32], first: &[f32], rest: &[RwLock<Vec<f32>>]) -> Result<(), String> {
    let check = |rank: usize, len: usize| match len == out.len() {
        true => Ok(()),
        false => Err(format!("rank {rank} adds {len} values, another {}", out.len())),
    };
    check(0, first.len())?;
    for (index, part) in rest.iter().enumerate() {
        check(index + 1, read(part).len())?;
    }
    out.copy_from_slice(first);
    for part in rest {
        out.iter_mut().zip(&*read(part)).for_each(|(sum, value)| *sum += value);
    }
    Ok(())
}

/// Where the ranks meet, again and again.
#[derive(Default)]
struct Barrier {
    state: Mutex<State>,
    changed: Condvar,
    /// As in `state`, for those who look without the lock. Only grows; also by a loss.
    changes: AtomicU64,
}

#[derive(Default)]
struct State {
    num_arrived: usize,
    generation: u64,
    lost: Option<String>,
}

impl Barrier {
    fn wait(&self, rank: usize, world_size: usize, wait_max: Duration) -> Result<(), KernelError> {
        let (generation, changes) = {
            let mut state = self.lock();
            state.check()?;
            state.num_arrived += 1;
            if state.num_arrived == world_size {
                state.num_arrived = 0;
                state.generation += 1;
                self.announce(&state);
                return Ok(());
            }
            (state.generation, self.changes.load(Ordering::Acquire))
        };
        let mut spins = 0;
        while spins < SPINS_MAX && self.changes.load(Ordering::Acquire) == changes {
            std::hint::spin_loop();
            spins += 1;
        }
        let start = Instant::now();
        let mut state = self.lock();
        while state.generation == generation {
            // Those who met before the loss have their sum; all others have lost it.
            state.check()?;
            let left = wait_max.saturating_sub(start.elapsed());
            if left.is_zero() {
                let seconds = wait_max.as_secs_f32();
                let reason = format!("rank {rank} waited {seconds} s for the other ranks");
                state.lost = Some(reason);
                self.announce(&state);
                continue;
            }
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    fn lose(&self, reason: &str) {
        let mut state = self.lock();
        if state.lost.is_none() {
            state.lost = Some(reason.to_string());
            self.announce(&state);
        }
    }

    /// Taking the state shows that the caller holds the lock.
    fn announce(&self, _state: &State) {
        self.changes.fetch_add(1, Ordering::Release);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&self) -> Result<(), KernelError> {
        match &self.lost {
            Some(reason) => Err(KernelError::Device(reason.clone())),
            None => Ok(()),
        }
    }
}

// A part is written whole or replaced: nobody sees one half from before a panic.
fn read(part: &RwLock<Vec<f32>>) -> RwLockReadGuard<'_, Vec<f32>> {
    part.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(part: &RwLock<Vec<f32>>) -> RwLockWriteGuard<'_, Vec<f32>> {
    part.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::JoinHandle;

    /// Runs `work` on a thread for each rank.
    fn run<T: Send + 'static>(
        links: Vec<Local>,
        work: impl Fn(Local) -> T + Clone + Send + 'static,
    ) -> Vec<std::thread::Result<T>> {
        let start = |link| {
            let work = work.clone();
            std::thread::spawn(move || work(link))
        };
        let threads: Vec<JoinHandle<T>> = links.into_iter().map(start).collect();
        threads.into_iter().map(JoinHandle::join).collect()
    }

    /// Values whose sum depends on the order of additions.
    fn value(rank: usize, round: usize, i: usize) -> f32 {
        let sign = if (rank + i).is_multiple_of(2) { 1.0 } else { -1.0 };
        sign * 1.7f32.powi(((rank * 37 + i * 11 + round * 5) % 60) as i32)
    }

    #[test]
    fn sums_are_added_in_rank_order_on_every_rank_in_every_round() {
        for world_size in [1, 2, 3, 4, 7] {
            let sums = run(group(world_size), |mut link| {
                let mut sums = Vec::new();
                for round in 0..200 {
                    let len = 1 + round * 7 % 90;
                    let own: Vec<f32> = (0..len).map(|i| value(link.rank, round, i)).collect();
                    let mut x = Tensor::from_f32(&[len], &own);
                    link.all_reduce_sum(&mut x).unwrap();
                    sums.push(x.f32().to_vec());
                }
                // Nobody leaves before all are done.
                link.all_reduce_sum(&mut Tensor::from_f32(&[1], &[0.0])).unwrap();
                (sums, link)
            });
            let sums: Vec<_> = sums.into_iter().map(|sums| sums.unwrap().0).collect();
            for (round, expected) in sums[0].iter().enumerate() {
                for (i, &sum) in expected.iter().enumerate() {
                    let in_order = (1..world_size)
                        .fold(value(0, round, i), |sum, rank| sum + value(rank, round, i));
                    assert_eq!(sum.to_bits(), in_order.to_bits(), "round {round}, value {i}");
                }
            }
            assert!(sums.iter().all(|of_rank| of_rank == &sums[0]));
        }
    }

    #[test]
    fn columns_of_unequal_ranks_come_side_by_side_in_every_round() {
        for (world_size, row_len) in [(1, 3), (2, 7), (3, 11), (4, 3), (7, 40)] {
            let rows = run(group(world_size), move |mut link| {
                for round in 0..50 {
                    let num_rows = round % 4;
                    let whole: Vec<f32> =
                        (0..num_rows * row_len).map(|i| value(i % 5, round, i)).collect();
                    let columns = part_range(row_len, link.rank, world_size);
                    let rows = whole.chunks_exact(row_len);
                    let part: Vec<f32> =
                        rows.flat_map(|row| &row[columns.clone()]).copied().collect();
                    let part = Tensor::from_f32(&[num_rows, columns.len()], &part);
                    let mut out = Tensor::zeros(DType::F32, &[num_rows, row_len]).unwrap();
                    link.all_gather_columns(&mut out, &part).unwrap();
                    assert_eq!(out.f32(), whole, "round {round} of {world_size} ranks");
                }
                // Nobody leaves before all are done.
                link.all_reduce_sum(&mut Tensor::from_f32(&[1], &[0.0])).unwrap();
                link
            });
            assert!(rows.iter().all(Result::is_ok));
        }
    }

    #[test]
    fn ranks_with_unequal_rows_are_refused() {
        let ends = run(group(2), |mut link| {
            let num_rows = 1 + link.rank();
            let mut out = Tensor::zeros(DType::F32, &[num_rows, 4]).unwrap();
            let part = Tensor::zeros(DType::F32, &[num_rows, 2]).unwrap();
            (link.all_gather_columns(&mut out, &part), link)
        });
        for end in ends {
            assert!(matches!(end.unwrap().0, Err(KernelError::Device(_))));
        }
    }

    #[test]
    fn a_rank_that_panics_or_leaves_ends_the_waiting_of_the_others() {
        for panics in [true, false] {
            let ends = run(group(3), move |mut link| {
                let mut x = Tensor::from_f32(&[2], &[1.0, 2.0]);
                link.all_reduce_sum(&mut x).unwrap();
                if link.rank() == 1 {
                    assert!(!panics, "rank 1 goes down");
                    return Ok(());
                }
                link.all_reduce_sum(&mut x)
            });
            let left = Err(KernelError::Device("rank 1 has left the group".to_string()));
            assert_eq!(*ends[0].as_ref().unwrap(), left);
            assert_eq!(*ends[2].as_ref().unwrap(), left);
            assert_eq!(ends[1].is_err(), panics);
        }
    }

    #[test]
    fn a_rank_that_never_comes_is_given_up_in_time() {
        let mut links = group_with_wait(2, Duration::from_millis(50));
        let start = Instant::now();
        let mut x = Tensor::from_f32(&[1], &[1.0]);
        let late = KernelError::Device("rank 0 waited 0.05 s for the other ranks".to_string());
        assert_eq!(links[0].all_reduce_sum(&mut x), Err(late.clone()));
        assert!(start.elapsed() < Duration::from_secs(20));
        // Whoever comes later learns it, and does not wait.
        assert_eq!(links[1].all_reduce_sum(&mut x), Err(late));
    }

    #[test]
    fn a_breaker_ends_a_wait_under_way() {
        let mut links = group(2);
        let breaker = links[0].breaker();
        let waiting = std::thread::spawn(move || {
            let mut link = links.remove(0);
            let result = link.all_reduce_sum(&mut Tensor::from_f32(&[1], &[1.0]));
            (result, links)
        });
        std::thread::sleep(Duration::from_millis(20));
        breaker.trip("given up");
        let (result, _others) = waiting.join().unwrap();
        assert_eq!(result, Err(KernelError::Device("given up".to_string())));
    }

    #[test]
    fn parts_of_unequal_length_or_another_dtype_are_refused() {
        let ends = run(group(2), |mut link| {
            let len = 1 + link.rank();
            let result = link.all_reduce_sum(&mut Tensor::zeros(DType::F32, &[len]).unwrap());
            (result, link)
        });
        for end in ends {
            assert!(matches!(end.unwrap().0, Err(KernelError::Device(_))));
        }
        let mut halves = Tensor::zeros(DType::F16, &[1]).unwrap();
        assert!(matches!(group(1)[0].all_reduce_sum(&mut halves), Err(KernelError::DType { .. })));
    }
}
