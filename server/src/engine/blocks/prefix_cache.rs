//! Finds blocks that already hold the keys and values of a prefix.

use crate::engine::plan::BlockId;
use crate::engine::request::CacheSalt;
use models::TokenId;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

/// Names a full block by all that its contents depend on: the salt and every token up to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHash([u8; 32]);

/// A map by block hashes. They are scattered already, so that a part of one does for its place,
/// mixed with a key: nobody can choose prompts whose places are the same.
pub type ByHash<T> = HashMap<BlockHash, T, FirstBytes>;

impl Hash for BlockHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let first = self.0.first_chunk().expect("32 bytes");
        state.write_u64(u64::from_le_bytes(*first));
    }
}

#[derive(Debug, Clone)]
pub struct FirstBytes {
    key: u64,
    mixed: u64,
}

impl Default for FirstBytes {
    fn default() -> Self {
        // The map is never iterated, so that no decision depends on it.
        Self { key: RandomState::new().hash_one(0), mixed: 0 }
    }
}

impl BuildHasher for FirstBytes {
    type Hasher = FirstBytes;

    fn build_hasher(&self) -> FirstBytes {
        self.clone()
    }
}

impl Hasher for FirstBytes {
    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("only block hashes are hashed, by write_u64");
    }

    fn write_u64(&mut self, first: u64) {
        let product = u128::from(first ^ self.key) * u128::from(self.key.rotate_left(32) | 1);
        self.mixed = product as u64 ^ (product >> 64) as u64;
    }

    fn finish(&self) -> u64 {
        self.mixed
    }
}

/// The hashes of a sequence's full blocks, computed once and kept as the sequence grows.
#[derive(Debug, Clone)]
pub struct HashChain {
    salt: CacheSalt,
    hashes: Vec<BlockHash>,
}

impl HashChain {
    pub fn new(salt: CacheSalt) -> Self {
        Self { salt, hashes: Vec::new() }
    }

    pub fn salt(&self) -> CacheSalt {
        self.salt
    }

    /// Hashes of the first `num_blocks` blocks of `token_ids`, which only ever grows at its end.
    pub fn blocks(
        &mut self,
        token_ids: &[TokenId],
        block_size: usize,
        num_blocks: usize,
    ) -> &[BlockHash] {
        while self.hashes.len() < num_blocks {
            let start = self.hashes.len() * block_size;
            let block = &token_ids[start..start + block_size];
            self.hashes.push(block_hash(self.salt, self.hashes.last(), block));
        }
        &self.hashes[..num_blocks]
    }
}

/// What comes before a cached block. An entry's number is never used twice, so equal parents mean
/// equal contents all the way to the root, whatever the hashes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    Root(CacheSalt),
    Entry(u64),
}

/// A cached block, and the name its children know it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachedBlock {
    pub block: BlockId,
    pub as_parent: Parent,
}

/// What `PrefixCache::find` knows of a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    Hit(CachedBlock),
    /// Another block has this hash: a collision. It is never returned.
    Different,
    Nothing,
}

/// Full, computed blocks by hash. Entries are compared on every hit: a collision costs a miss,
/// never a wrong text.
pub struct PrefixCache {
    entries: ByHash<Entry>,
    /// The hash each block is cached under.
    hash_of_block: Vec<Option<BlockHash>>,
    next_number: u64,
}

struct Entry {
    number: u64,
    block: BlockId,
    parent: Parent,
    token_ids: Box<[TokenId]>,
}

impl PrefixCache {
    pub fn new(num_blocks: usize) -> Self {
        Self { entries: ByHash::default(), hash_of_block: vec![None; num_blocks], next_number: 0 }
    }

    pub fn find(&self, hash: &BlockHash, parent: Parent, token_ids: &[TokenId]) -> Found {
        match self.entries.get(hash) {
            None => Found::Nothing,
            Some(entry) if entry.parent == parent && *entry.token_ids == *token_ids => {
                Found::Hit(entry.cached())
            }
            Some(_) => Found::Different,
        }
    }

    /// Enters a block whose hash `find` does not know.
    pub fn insert(
        &mut self,
        hash: BlockHash,
        parent: Parent,
        token_ids: &[TokenId],
        block: BlockId,
    ) -> CachedBlock {
        let entry = Entry { number: self.next_number, block, parent, token_ids: token_ids.into() };
        self.next_number += 1;
        let cached = entry.cached();
        let earlier = self.entries.insert(hash, entry);
        assert!(earlier.is_none(), "a hash is cached once");
        let earlier = self.hash_of_block[block.0 as usize].replace(hash);
        assert!(earlier.is_none(), "block {} is cached under one hash", block.0);
        cached
    }

    pub fn contains_block(&self, block: BlockId) -> bool {
        self.hash_of_block[block.0 as usize].is_some()
    }

    /// Forgets what the block holds, since it is about to be overwritten. Returns whether it was
    /// cached.
    pub fn evict(&mut self, block: BlockId) -> bool {
        let Some(hash) = self.hash_of_block[block.0 as usize].take() else { return false };
        let entry = self.entries.remove(&hash).expect("cached blocks have an entry");
        assert_eq!(entry.block, block, "an entry and its block name each other");
        true
    }

    pub fn num_blocks(&self) -> usize {
        self.entries.len()
    }
}

impl Entry {
    fn cached(&self) -> CachedBlock {
        CachedBlock { block: self.block, as_parent: Parent::Entry(self.number) }
    }
}

/// Hash of the salt, of the parent's hash (none at the root), and of the block's tokens.
fn block_hash(salt: CacheSalt, parent: Option<&BlockHash>, token_ids: &[TokenId]) -> BlockHash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&salt.0);
    // The root is told from a parent whose hash is all zeros.
    hasher.update(&[u8::from(parent.is_some())]);
    hasher.update(&parent.map_or([0; 32], |hash| hash.0));
    // Many at a time: the hasher takes few bytes at a time slowly.
    let mut bytes = [0; 256];
    for tokens in token_ids.chunks(bytes.len() / size_of::<TokenId>()) {
        let places = bytes.chunks_exact_mut(size_of::<TokenId>());
        places.zip(tokens).for_each(|(place, id)| place.copy_from_slice(&id.0.to_le_bytes()));
        hasher.update(&bytes[..size_of_val(tokens)]);
    }
    BlockHash(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: CacheSalt = CacheSalt([1; 32]);
    const OTHER_SALT: CacheSalt = CacheSalt([2; 32]);

    fn tokens(ids: [u32; 2]) -> [TokenId; 2] {
        ids.map(TokenId)
    }

    #[test]
    fn equal_hashes_of_different_blocks_are_never_a_hit() {
        let mut cache = PrefixCache::new(4);
        let hash = BlockHash([9; 32]);
        let root = Parent::Root(SALT);
        let cached = cache.insert(hash, root, &tokens([1, 2]), BlockId(3));
        assert_eq!(cache.find(&hash, root, &tokens([1, 2])), Found::Hit(cached));
        let different = [
            (root, tokens([1, 3])),
            (Parent::Root(OTHER_SALT), tokens([1, 2])),
            (cached.as_parent, tokens([1, 2])),
        ];
        for (parent, token_ids) in different {
            assert_eq!(cache.find(&hash, parent, &token_ids), Found::Different);
        }
    }

    #[test]
    fn a_child_does_not_outlive_its_parent_under_the_same_hash() {
        let mut cache = PrefixCache::new(4);
        let (parent_hash, child_hash) = (BlockHash([1; 32]), BlockHash([2; 32]));
        let root = Parent::Root(SALT);
        let parent = cache.insert(parent_hash, root, &tokens([1, 2]), BlockId(0));
        let child = cache.insert(child_hash, parent.as_parent, &tokens([3, 4]), BlockId(1));
        assert!(cache.evict(BlockId(0)));
        // Another block with the parent's hash is not the child's parent.
        let impostor = cache.insert(parent_hash, root, &tokens([5, 6]), BlockId(2));
        let found = cache.find(&child_hash, impostor.as_parent, &tokens([3, 4]));
        assert_eq!(found, Found::Different);
        let found = cache.find(&child_hash, parent.as_parent, &tokens([3, 4]));
        assert_eq!(found, Found::Hit(child));
    }

    #[test]
    fn a_hash_covers_salt_tokens_and_all_that_came_before() {
        let hashes = |salt, token_ids: &[u32]| {
            let token_ids: Vec<TokenId> = token_ids.iter().copied().map(TokenId).collect();
            HashChain::new(salt).blocks(&token_ids, 2, token_ids.len() / 2).to_vec()
        };
        let base = hashes(SALT, &[1, 2, 3, 4]);
        assert_eq!(base, hashes(SALT, &[1, 2, 3, 4, 5]));
        assert_eq!(base[0], hashes(SALT, &[1, 2, 9, 9])[0]);
        let others = [
            hashes(OTHER_SALT, &[1, 2, 3, 4]),
            hashes(SALT, &[1, 9, 3, 4]),
            hashes(SALT, &[2, 1, 3, 4]),
        ];
        for other in others {
            assert!(base[0] != other[0] && base[1] != other[1]);
        }
        assert_ne!(hashes(SALT, &[1, 2, 1, 2])[0], hashes(SALT, &[1, 2, 1, 2])[1]);
    }

    #[test]
    fn an_evicted_block_is_not_found() {
        let mut cache = PrefixCache::new(1);
        let (hash, root) = (BlockHash([1; 32]), Parent::Root(SALT));
        cache.insert(hash, root, &tokens([1, 2]), BlockId(0));
        assert!(cache.contains_block(BlockId(0)));
        assert!(cache.evict(BlockId(0)));
        assert!(!cache.evict(BlockId(0)));
        assert_eq!(cache.find(&hash, root, &tokens([1, 2])), Found::Nothing);
    }
}
