use super::*;

const STEP: usize = 100;

struct Bench {
    fair: FairShare,
    now: Instant,
}

impl Bench {
    fn new(weights: &[u32]) -> Self {
        let mut bench = Self { fair: FairShare::new(STEP), now: Instant::now() };
        for (i, weight) in weights.iter().enumerate() {
            bench.see(i as u32, *weight);
        }
        bench
    }

    fn see(&mut self, tenant: u32, weight: u32) {
        self.fair.see(flow(tenant), Tenant { weight, ..Tenant::default() }, self.now);
    }

    /// Gives the next of `tenants` a whole step, so many times. Returns how many each has had.
    fn serve(&mut self, tenants: u32, num_steps: usize) -> Vec<usize> {
        let mut had = vec![0; tenants as usize];
        for _ in 0..num_steps {
            let next = self.order(0..tenants)[0];
            self.fair.charge(flow(next), STEP);
            had[next as usize] += 1;
        }
        had
    }

    fn order(&self, tenants: std::ops::Range<u32>) -> Vec<u32> {
        let mut flows: Vec<Flow> = tenants.map(flow).collect();
        flows.sort_by(|a, b| self.fair.compare(*a, *b));
        flows.iter().map(|flow| flow.tenant.0).collect()
    }
}

fn flow(tenant: u32) -> Flow {
    Flow { lane: Lane::Interactive, tenant: TenantId(tenant) }
}

#[test]
fn who_always_has_work_gets_tokens_by_weight() {
    let mut bench = Bench::new(&[1, 1]);
    assert_eq!(bench.serve(2, 10), [5, 5]);
    let mut bench = Bench::new(&[1, 3, 6]);
    for (had, due) in bench.serve(3, 1000).into_iter().zip([100, 300, 600]) {
        assert!(had.abs_diff(due) <= 1, "{had} steps, not {due}");
    }
}

#[test]
fn who_has_had_least_is_first_and_equals_are_in_order() {
    let mut bench = Bench::new(&[1, 1, 1]);
    assert_eq!(bench.order(0..3), [0, 1, 2]);
    bench.fair.charge(flow(0), 3);
    bench.fair.charge(flow(1), 2);
    assert_eq!(bench.order(0..3), [2, 1, 0]);
}

#[test]
fn whoever_comes_late_catches_up_no_more_than_the_credit() {
    let mut bench = Bench::new(&[1]);
    bench.serve(1, 1000);
    bench.see(1, 1);
    // Its credit first, then by turns.
    assert_eq!(bench.serve(2, CREDIT_STEPS), [0, CREDIT_STEPS]);
    assert_eq!(bench.serve(2, 100), [50, 50]);
}

#[test]
fn the_credit_is_the_same_tokens_at_every_weight() {
    for weight in [1, 7, 1000] {
        let mut bench = Bench::new(&[1000]);
        bench.serve(1, 1_000_000);
        bench.see(1, weight);
        let mut num_steps = 0;
        while bench.order(0..2)[0] == 1 {
            bench.fair.charge(flow(1), STEP);
            num_steps += 1;
        }
        assert!((CREDIT_STEPS..=CREDIT_STEPS + 1).contains(&num_steps), "{weight}: {num_steps}");
    }
}

#[test]
fn who_asks_for_little_is_always_first() {
    let mut bench = Bench::new(&[1, 1]);
    for _ in 0..1000 {
        // The one takes three steps for each of the other's.
        for _ in 0..3 {
            bench.fair.charge(flow(0), STEP);
        }
        assert_eq!(bench.order(0..2)[0], 1);
        bench.fair.charge(flow(1), STEP);
    }
}

#[test]
fn lanes_are_told_apart() {
    let mut bench = Bench::new(&[1, 1]);
    let background = Flow { lane: Lane::Background, tenant: TenantId(0) };
    bench.fair.see(background, Tenant::default(), bench.now);
    bench.fair.charge(background, 1000 * STEP);
    assert_eq!(bench.order(0..2), [0, 1], "what ran in the background is no debt");
    assert_eq!(bench.fair.compare(flow(1), background), Ordering::Less);
}

#[test]
fn who_was_there_lately_is_reckoned_with() {
    let mut bench = Bench::new(&[1, 1]);
    bench.serve(1, 1);
    let later = |time: Duration| bench.now + time;
    assert!(!bench.fair.follows_absent(flow(0), later(RECENT / 2)), "the other one is there");
    bench.fair.begin(bench.now);
    bench.fair.see(flow(0), Tenant::default(), bench.now);
    assert!(bench.fair.follows_absent(flow(0), later(RECENT / 2)));
    assert!(!bench.fair.follows_absent(flow(1), later(RECENT / 2)));
    assert!(!bench.fair.follows_absent(flow(0), later(RECENT)));
}

#[test]
fn who_is_forgotten_starts_anew() {
    let mut bench = Bench::new(&[1, 1]);
    bench.serve(1, 100);
    bench.now += FORGOTTEN;
    bench.see(1, 1);
    bench.fair.begin(bench.now);
    assert_eq!(bench.fair.accounts.len(), 1);
    bench.see(0, 1);
    bench.fair.charge(flow(1), 1);
    assert_eq!(bench.order(0..2), [0, 1]);
}
