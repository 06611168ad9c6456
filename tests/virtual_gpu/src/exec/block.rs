//! One block: its shared memory, barriers and warps, and the order in which the warps run.

use super::shadow::{Shadow, lanes};
use super::warp::{Fault, Status, Stop, Warp};
use super::{ConstValue, Env};
use crate::checks::{CheckKind, Violation};
use crate::counters::{Counters, INST_CLASSES, Wavefronts};
use crate::memory::POISON;
use crate::ptx::decode::Special;

/// A warp that runs this long without a barrier lets the others run, or a spin lock would never
/// end.
const BURST_MAX: u64 = 1 << 16;

/// SplitMix64.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

#[derive(Clone, Copy, Default)]
pub struct Barrier {
    /// Warps that arrived, and those of them that wait.
    pub arrived: u32,
    pub waiting: u32,
    pub expected_warps: u32,
    pub popc: u32,
    pub all: bool,
    pub any: bool,
}

/// 16-byte aligned bytes.
#[derive(Clone, Copy)]
#[repr(align(16))]
struct Bytes16(#[allow(dead_code)] [u8; 16]);

pub struct Shared {
    data: Vec<Bytes16>,
    pub bytes: u32,
    /// One byte per byte: was it written?
    pub written: Vec<u8>,
    /// One byte per byte: is an asynchronous copy to it in flight?
    pub in_flight: Vec<u8>,
    pub shadow: Option<Shadow>,
}

impl Shared {
    #[inline(always)]
    pub fn host(&mut self) -> *mut u8 {
        self.data.as_mut_ptr().cast()
    }
}

/// Counters in the form that is cheap to add to.
#[derive(Default)]
pub struct Tally {
    pub executed: Vec<u64>,
    pub threads: u64,
    pub shared_by_pc: Vec<Wavefronts>,
    pub counters: Counters,
    /// Thread accesses to global memory by log2 of their width.
    pub widths: [u64; 8],
}

/// What a warp needs of its block.
pub struct BlockState<'a> {
    pub env: &'a Env<'a>,
    pub index: [u32; 3],
    pub shared: Shared,
    pub barriers: [Barrier; 16],
    pub tally: Tally,
    pub rng: Rng,
    /// Instruction -> the allocation it touched last.
    pub site: Vec<u32>,
    pub exited_threads: u32,
    pub clock: u64,
}

pub struct BlockRunner<'a> {
    state: BlockState<'a>,
    warps: Vec<Warp>,
}

impl<'a> BlockRunner<'a> {
    pub fn new(env: &'a Env<'a>) -> BlockRunner<'a> {
        let bytes = env.shared_bytes as usize;
        let checks = env.config.checks;
        let shared = Shared {
            data: vec![Bytes16([POISON; 16]); bytes.div_ceil(16) + 1],
            bytes: env.shared_bytes,
            written: if checks.initcheck { vec![0; bytes + 16] } else { Vec::new() },
            in_flight: if checks.synccheck { vec![0; bytes + 16] } else { Vec::new() },
            shadow: checks
                .racecheck
                .then(|| Shadow::new(bytes, env.kernel.shared_grain, env.warps_per_block as usize)),
        };
        let count = env.kernel.insts.len();
        let tally = Tally {
            executed: vec![0; count],
            shared_by_pc: vec![Wavefronts::default(); count],
            ..Tally::default()
        };
        let state = BlockState {
            env,
            index: [0; 3],
            shared,
            barriers: [Barrier::default(); 16],
            tally,
            rng: Rng::new(0),
            site: vec![0; count],
            exited_threads: 0,
            clock: 0,
        };
        let warps = (0..env.warps_per_block).map(|id| Warp::new(env, id)).collect();
        BlockRunner { state, warps }
    }

    /// Runs block `index` of the grid.
    pub fn run(&mut self, index: u64) -> Result<(), Violation> {
        self.begin(index);
        let seeded = self.state.env.config.seed != 0;
        let mut turn = 0;
        loop {
            let ready: Vec<usize> =
                (0..self.warps.len()).filter(|&w| self.warps[w].status == Status::Ready).collect();
            let Some(&first) = ready.first() else { break };
            let (w, burst) = if seeded {
                let w = ready[self.state.rng.below(ready.len() as u64) as usize];
                // Short bursts find hazards between neighbours, long ones between phases.
                let length = 1 << self.state.rng.below(9);
                (w, 1 + self.state.rng.below(length))
            } else {
                let w = ready.iter().copied().find(|&w| w >= turn).unwrap_or(first);
                (w, BURST_MAX)
            };
            let warp = &mut self.warps[w];
            if seeded {
                warp.arrive_some(&mut self.state);
            }
            match warp.run(&mut self.state, burst) {
                Ok(Stop::Budget) => turn = w + 1,
                Ok(Stop::Blocked | Stop::Done) => {}
                Err(fault) => return Err(self.violation(w, *fault)),
            }
            if self.warps[w].instructions > self.state.env.config.warp_instructions_max {
                let message = "more instructions than the limit of the launch".to_string();
                let fault = Fault::new(CheckKind::Timeout, None, None, message);
                return Err(self.violation(w, fault));
            }
            if let Some(id) = self.warps[w].arriving.take() {
                self.arrive(w, id)?;
            }
            if self.warps[w].status == Status::Done {
                self.release_after_exit()?;
            }
        }
        self.finish()
    }

    fn begin(&mut self, index: u64) {
        let [gx, gy, _] = self.state.env.config.grid.map(u64::from);
        let state = &mut self.state;
        state.index = [(index % gx) as u32, (index / gx % gy) as u32, (index / (gx * gy)) as u32];
        state.rng = Rng::new(state.env.config.seed ^ index.wrapping_mul(0xD134_2543_DE82_EF95));
        state.barriers = [Barrier::default(); 16];
        state.exited_threads = 0;
        if state.env.config.checks.memcheck || state.env.config.checks.initcheck {
            state.shared.data.fill(Bytes16([POISON; 16]));
        }
        state.shared.written.fill(0);
        state.shared.in_flight.fill(0);
        if let Some(shadow) = &mut state.shared.shadow {
            shadow.reset();
        }
        for warp in &mut self.warps {
            warp.begin(state);
        }
        state.tally.counters.blocks += 1;
        state.tally.counters.warps += self.warps.len() as u64;
    }

    /// All threads are done, or those that are left wait for each other for ever.
    fn finish(&mut self) -> Result<(), Violation> {
        let stuck = (0..self.warps.len()).find(|&w| self.warps[w].status != Status::Done);
        let Some(w) = stuck else { return Ok(()) };
        let Status::AtBarrier(id) = self.warps[w].status else { unreachable!("ready warps run") };
        let barrier = self.state.barriers[id as usize];
        let mut places: Vec<String> = Vec::new();
        for (other, warp) in self.warps.iter().enumerate() {
            let place = match warp.status {
                Status::Done => format!("warp {other} exited"),
                Status::AtBarrier(id) => {
                    let line = self.state.env.kernel.infos[warp.pc as usize - 1].line;
                    format!("warp {other} waits at barrier {id}, line {line}")
                }
                Status::Ready => unreachable!("ready warps run"),
            };
            if places.len() < 8 {
                places.push(place);
            }
        }
        let message = format!(
            "deadlock: barrier {id} has {} of {} warps; {}",
            barrier.arrived.count_ones(),
            barrier.expected_warps,
            places.join("; ")
        );
        let lane = self.warps[w].alive.trailing_zeros();
        let fault = Fault::new(CheckKind::Synccheck, Some(lane), None, message);
        Err(self.violation(w, fault))
    }

    /// A warp arrived at barrier `id`; when it is the last, all go on.
    fn arrive(&mut self, w: usize, id: u32) -> Result<(), Violation> {
        let barrier = self.state.barriers[id as usize];
        if barrier.arrived.count_ones() < barrier.expected_warps {
            return Ok(());
        }
        if self.state.env.config.checks.synccheck
            && self.state.exited_threads > 0
            && barrier.expected_warps == self.state.env.warps_per_block
        {
            let message = format!(
                "barrier {id} for all threads, but {} threads of the block have exited",
                self.state.exited_threads
            );
            let lane = self.warps[w].alive.trailing_zeros();
            let fault = Fault::new(CheckKind::Synccheck, Some(lane), None, message);
            return Err(self.violation(w, fault));
        }
        self.release(id);
        Ok(())
    }

    fn release(&mut self, id: u32) {
        let barrier = std::mem::take(&mut self.state.barriers[id as usize]);
        if let Some(shadow) = &mut self.state.shared.shadow {
            shadow.join(barrier.arrived, barrier.waiting);
        }
        for w in lanes(barrier.waiting) {
            self.warps[w].leave_barrier(&self.state, &barrier);
        }
        self.state.tally.counters.barriers += 1;
    }

    /// Warps that exited are no longer waited for.
    fn release_after_exit(&mut self) -> Result<(), Violation> {
        let done =
            (0..self.warps.len()).filter(|&w| self.warps[w].status == Status::Done).count() as u32;
        for id in 0..16 {
            let barrier = self.state.barriers[id as usize];
            let all = barrier.expected_warps == self.state.env.warps_per_block;
            if barrier.arrived == 0
                || !all
                || barrier.arrived.count_ones() + done < barrier.expected_warps
            {
                continue;
            }
            if self.state.env.config.checks.synccheck {
                // `finish` tells who waits where.
                continue;
            }
            self.release(id);
        }
        Ok(())
    }

    fn violation(&self, w: usize, fault: Fault) -> Violation {
        let env = self.state.env;
        let warp = &self.warps[w];
        let pc = fault.pc.unwrap_or(warp.pc.saturating_sub(1)) as usize;
        let info = &env.kernel.infos[pc.min(env.kernel.infos.len() - 1)];
        let thread = fault.lane.filter(|&l| l < 32).map(|lane| {
            let linear = w as u32 * 32 + lane;
            let [x, y, _] = env.config.block;
            [linear % x, linear / x % y, linear / (x * y)]
        });
        Violation {
            kind: fault.kind,
            kernel: env.kernel.name.clone(),
            block: self.state.index,
            thread,
            line: info.line,
            source: env.kernel.source(info),
            address: fault.address,
            message: format!("{}: {}", info.opcode, fault.message),
        }
    }

    pub fn into_counters(self) -> Counters {
        let kernel = self.state.env.kernel;
        let tally = self.state.tally;
        let mut counters = tally.counters;
        for (info, &count) in kernel.infos.iter().zip(&tally.executed) {
            if count > 0 {
                *counters.by_class.entry(info.class).or_default() += count;
                *counters.executed_by_line.entry(info.line).or_default() += count;
                counters.warp_instructions += count;
            }
        }
        debug_assert!(counters.by_class.keys().all(|c| INST_CLASSES.contains(c)));
        for (info, waves) in kernel.infos.iter().zip(&tally.shared_by_pc) {
            if waves.minimal > 0 {
                let entry = counters.shared_by_line.entry(info.line).or_default();
                entry.actual += waves.actual;
                entry.minimal += waves.minimal;
                counters.shared_wavefronts.actual += waves.actual;
                counters.shared_wavefronts.minimal += waves.minimal;
            }
        }
        for (log, &count) in tally.widths.iter().enumerate() {
            if count > 0 {
                counters.global_widths.insert(1 << log, count);
            }
        }
        counters.thread_instructions = tally.threads;
        counters
    }
}

/// The value of a special register for a lane.
pub fn special(env: &Env, block: [u32; 3], warp: u32, lane: u32, which: Special) -> u32 {
    let [bx, by, bz] = env.config.block;
    let [gx, gy, gz] = env.config.grid;
    let linear = warp * 32 + lane;
    match which {
        Special::TidX => linear % bx,
        Special::TidY => linear / bx % by,
        Special::TidZ => linear / (bx * by),
        Special::NtidX => bx,
        Special::NtidY => by,
        Special::NtidZ => bz,
        Special::CtaidX => block[0],
        Special::CtaidY => block[1],
        Special::CtaidZ => block[2],
        Special::NctaidX => gx,
        Special::NctaidY => gy,
        Special::NctaidZ => gz,
        Special::LaneId => lane,
        Special::WarpId => warp,
        Special::NwarpId => env.warps_per_block,
        Special::SmId => 0,
        Special::NsmId => 1,
        Special::GridId => 0,
        Special::MaskEq => 1 << lane,
        Special::MaskLt => (1 << lane) - 1,
        Special::MaskLe => u32::MAX >> (31 - lane),
        Special::MaskGt => !(u32::MAX >> (31 - lane)),
        Special::MaskGe => !((1 << lane) - 1),
        Special::DynamicSharedBytes => env.config.dynamic_shared_bytes,
        Special::TotalSharedBytes => env.shared_bytes,
    }
}

/// Does the value differ between blocks?
pub fn is_block_wide(value: &ConstValue) -> bool {
    matches!(value, ConstValue::Special(Special::CtaidX | Special::CtaidY | Special::CtaidZ))
}
