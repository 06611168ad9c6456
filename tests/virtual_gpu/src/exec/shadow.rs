//! The race check of shared memory: who touched which bytes last, by happens-before, whatever the
//! schedule was.
//!
//! Each warp has a vector clock. A barrier joins the clocks of its participants, so a later access
//! knows of all that happened before the barrier. Inside a warp a counter of warp-wide
//! synchronisations orders the lanes.

/// Two accesses by different threads of one warp are ordered if a warp synchronisation lies between
/// them.
pub const MANY_LANES: u8 = 0xFF;

#[derive(Clone, Copy, Default)]
struct Stamp {
    /// 0: no access.
    clock: u32,
    warp_sync: u32,
    warp: u8,
    lane: u8,
    atomic: bool,
    pc: u32,
}

#[derive(Clone, Copy, Default)]
struct Cell {
    write: Stamp,
    /// The last reads of two different warps: enough to see a write that no barrier separates from
    /// reads of any warp.
    reads: [Stamp; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    Read,
    Write,
    Atomic,
}

/// Who touches.
#[derive(Clone, Copy)]
pub struct Actor {
    pub warp: u8,
    pub lane: u8,
    pub warp_sync: u32,
    pub pc: u32,
}

/// The earlier access of a race.
pub struct Race {
    pub warp: u8,
    pub lane: u8,
    pub pc: u32,
    pub was_write: bool,
}

pub struct Shadow {
    grain: u32,
    cells: Vec<Cell>,
    /// `clocks[w][v]`: what warp w knows of warp v.
    pub clocks: Vec<[u32; 32]>,
}

impl Shadow {
    pub fn new(bytes: usize, grain: u32, warps: usize) -> Shadow {
        let cells = vec![Cell::default(); bytes.div_ceil(grain as usize)];
        let mut shadow = Shadow { grain, cells, clocks: vec![[0; 32]; warps] };
        shadow.reset_clocks();
        shadow
    }

    pub fn reset(&mut self) {
        self.cells.fill(Cell::default());
        self.reset_clocks();
    }

    fn reset_clocks(&mut self) {
        for (w, clock) in self.clocks.iter_mut().enumerate() {
            *clock = [0; 32];
            clock[w] = 1;
        }
    }

    fn races(&self, earlier: &Stamp, actor: &Actor) -> bool {
        if earlier.clock == 0 {
            return false;
        }
        if earlier.warp != actor.warp {
            return self.clocks[actor.warp as usize][earlier.warp as usize] < earlier.clock;
        }
        let same_lane = earlier.lane == actor.lane && earlier.lane != MANY_LANES;
        !same_lane && earlier.warp_sync == actor.warp_sync
    }

    /// Notes an access of `bytes` bytes at `offset`; returns the earlier access that it races with.
    pub fn touch(&mut self, offset: u32, bytes: u32, touch: Touch, actor: &Actor) -> Option<Race> {
        let first = offset / self.grain;
        let last = (offset + bytes - 1) / self.grain;
        let mut found = None;
        for index in first..=last {
            let cell = self.cells[index as usize];
            let both_atomic = touch == Touch::Atomic && cell.write.atomic;
            if !both_atomic && self.races(&cell.write, actor) {
                found = Some((cell.write, true));
            }
            let stamp = Stamp {
                clock: self.clocks[actor.warp as usize][actor.warp as usize],
                warp_sync: actor.warp_sync,
                warp: actor.warp,
                lane: actor.lane,
                atomic: touch == Touch::Atomic,
                pc: actor.pc,
            };
            let cell = &mut self.cells[index as usize];
            if touch == Touch::Read {
                let own = cell.reads[0].clock == 0 || cell.reads[0].warp == actor.warp;
                let slot = if own { &mut cell.reads[0] } else { &mut cell.reads[1] };
                let together = slot.clock == stamp.clock
                    && slot.warp == stamp.warp
                    && slot.warp_sync == stamp.warp_sync
                    && slot.lane != stamp.lane;
                *slot = stamp;
                if together {
                    slot.lane = MANY_LANES;
                }
            } else {
                cell.write = stamp;
                let reads = cell.reads;
                cell.reads = [Stamp::default(); 2];
                for read in reads {
                    if self.races(&read, actor) {
                        found = Some((read, false));
                    }
                }
            }
        }
        found.map(|(s, was_write)| Race { warp: s.warp, lane: s.lane, pc: s.pc, was_write })
    }

    /// A barrier: `waiting` warps learn what all `participants` did.
    pub fn join(&mut self, participants: u32, waiting: u32) {
        let mut joined = [0; 32];
        for w in lanes(participants) {
            for (mine, theirs) in joined.iter_mut().zip(&self.clocks[w]) {
                *mine = (*mine).max(*theirs);
            }
        }
        for w in lanes(waiting) {
            self.clocks[w] = joined;
        }
        for w in lanes(participants) {
            self.clocks[w][w] += 1;
        }
    }
}

/// The indices of the set bits.
pub fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let lane = mask.trailing_zeros() as usize;
        mask &= mask - 1;
        Some(lane)
    })
}
