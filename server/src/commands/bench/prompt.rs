//! Prompts of a given number of words that are the same for the same seed.

/// Common words; with the space before it, each is one token in the vocabularies of today's models.
const WORDS: [&str; 96] = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
    "car",
    "city",
    "community",
    "name",
    "president",
    "team",
    "minute",
    "idea",
    "body",
    "information",
    "back",
    "parent",
    "face",
    "others",
    "level",
    "office",
    "door",
    "health",
    "person",
    "art",
    "war",
    "history",
    "party",
    "result",
    "change",
    "morning",
    "reason",
    "research",
    "girl",
    "guy",
    "moment",
    "air",
];

pub struct Prompts {
    seed: u64,
    prefix: String,
    own_len: usize,
}

impl Prompts {
    /// `input_len` words each, the first `prefix_len` of them the same in all.
    pub fn new(seed: u64, prefix_len: usize, input_len: usize) -> Self {
        let mut random = Random::new(seed, u64::MAX - 1);
        Prompts { seed, prefix: words(&mut random, prefix_len), own_len: input_len - prefix_len }
    }

    pub fn prompt(&self, number: u64) -> String {
        let own = words(&mut Random::new(self.seed, number), self.own_len);
        format!("{}{own}", self.prefix).trim_start().to_string()
    }
}

/// " time year ...": so many words, each with a space before it.
fn words(random: &mut Random, count: usize) -> String {
    (0..count).map(|_| format!(" {}", WORDS[random.below(WORDS.len() as u64) as usize])).collect()
}

/// SplitMix64 (Steele, Lea and Flood, 2014): enough for load, and the same on every machine.
pub struct Random {
    state: u64,
}

impl Random {
    /// Streams of different numbers are independent of each other.
    pub fn new(seed: u64, number: u64) -> Self {
        let mut random = Random { state: seed };
        let mixed = random.next() ^ number;
        Random { state: Random { state: mixed }.next() }
    }

    /// 0 to below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// 0 to below 1.
    pub fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
