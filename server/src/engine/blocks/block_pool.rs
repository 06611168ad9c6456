//! Reference counts of blocks, and the order in which unreferenced ones are reused.

use crate::engine::plan::BlockId;

/// All blocks of the device, each either referenced or in one queue of reusable blocks.
///
/// The queue is a doubly linked list over block numbers, so that a block in its middle can be
/// referenced again in constant time. Its front is reused first.
pub struct BlockPool {
    references: Vec<u32>,
    /// Links of the queue; number `num_blocks` is its end on both sides.
    next: Vec<u32>,
    previous: Vec<u32>,
    num_free: usize,
}

impl BlockPool {
    pub fn new(num_blocks: usize) -> Self {
        let end = u32::try_from(num_blocks).expect("block ids are u32");
        let mut pool = Self {
            references: vec![0; num_blocks],
            next: vec![end; num_blocks + 1],
            previous: vec![end; num_blocks + 1],
            num_free: 0,
        };
        for id in 0..end {
            pool.insert_before(end, id);
        }
        pool
    }

    pub fn num_blocks(&self) -> usize {
        self.references.len()
    }

    /// Blocks that nobody references; their contents may still be cached.
    pub fn num_free(&self) -> usize {
        self.num_free
    }

    pub fn references(&self, block: BlockId) -> u32 {
        self.references[block.0 as usize]
    }

    /// Takes the block at the front of the queue, with one reference; None if all are referenced.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let front = self.next[self.end() as usize];
        if front == self.end() {
            return None;
        }
        self.unlink(front);
        self.references[front as usize] = 1;
        Some(BlockId(front))
    }

    /// Adds a reference. Returns whether the block was unreferenced before.
    pub fn acquire(&mut self, block: BlockId) -> bool {
        let was_free = self.references(block) == 0;
        if was_free {
            self.unlink(block.0);
        }
        self.references[block.0 as usize] += 1;
        was_free
    }

    /// Removes a reference. Returns whether it was the last: then the caller queues the block.
    pub fn release(&mut self, block: BlockId) -> bool {
        let references = &mut self.references[block.0 as usize];
        assert!(*references > 0, "block {} is released once too often", block.0);
        *references -= 1;
        *references == 0
    }

    /// Queues an unreferenced block to be reused before all others: its contents are worth nothing.
    pub fn queue_first(&mut self, block: BlockId) {
        let front = self.next[self.end() as usize];
        self.insert_before(front, block.0);
    }

    /// Queues an unreferenced block to be reused after all others.
    pub fn queue_last(&mut self, block: BlockId) {
        self.insert_before(self.end(), block.0);
    }

    fn end(&self) -> u32 {
        self.references.len() as u32
    }

    fn insert_before(&mut self, place: u32, id: u32) {
        assert_eq!(self.references[id as usize], 0, "a referenced block cannot be reused");
        let before = self.previous[place as usize];
        self.next[before as usize] = id;
        self.previous[id as usize] = before;
        self.next[id as usize] = place;
        self.previous[place as usize] = id;
        self.num_free += 1;
    }

    fn unlink(&mut self, id: u32) {
        let (before, after) = (self.previous[id as usize], self.next[id as usize]);
        self.next[before as usize] = after;
        self.previous[after as usize] = before;
        self.num_free -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_reused_from_the_front_of_the_queue() {
        let mut pool = BlockPool::new(3);
        let [a, b, c] = [0; 3].map(|_| pool.allocate().unwrap());
        assert_eq!((pool.allocate(), pool.num_free()), (None, 0));
        for (block, queue) in [
            (b, BlockPool::queue_last as fn(&mut BlockPool, BlockId)),
            (a, BlockPool::queue_last),
            (c, BlockPool::queue_first),
        ] {
            assert!(pool.release(block));
            queue(&mut pool, block);
        }
        assert!(pool.acquire(b), "it was free, in the middle");
        assert!(!pool.acquire(b));
        assert_eq!([pool.allocate(), pool.allocate(), pool.allocate()], [Some(c), Some(a), None]);
        assert!(!pool.release(b), "one reference is left");
        assert!(pool.release(b));
    }

    #[test]
    #[should_panic(expected = "released once too often")]
    fn releasing_an_unreferenced_block_is_a_broken_invariant() {
        let mut pool = BlockPool::new(1);
        pool.release(BlockId(0));
    }
}
