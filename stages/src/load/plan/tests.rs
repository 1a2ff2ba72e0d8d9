//! The order against its contract.

use proptest::prelude::*;

use super::*;

fn plan(blocks: &[u32], seed: u64, batch: usize, pool_blocks: usize) -> Plan {
    Plan::new(PlanConfig { blocks: blocks.to_vec(), seed, batch, pool_blocks }).unwrap()
}

fn positions(plan: &Plan, epoch: u64) -> Vec<u64> {
    plan.epoch(epoch).iter().map(|sample| sample.position).collect()
}

#[test]
fn the_order_never_changes() {
    // Computed from the module doc by another program (Python, with the xxhash package).
    let sliding = plan(&[4, 4, 3, 4, 1], 42, 5, 2);
    assert_eq!(positions(&sliding, 0), [4, 5, 7, 6, 0, 15, 1, 3, 2, 10, 8, 11, 9, 14, 13, 12]);
    assert_eq!(positions(&sliding, 1), [5, 4, 7, 6, 9, 1, 0, 2, 8, 10, 3, 13, 15, 11, 14, 12]);
    let growing = positions(&plan(&[3; 200], 42, 1, 100), 1);
    let bytes: Vec<u8> = growing.iter().flat_map(|position| position.to_le_bytes()).collect();
    assert_eq!(xxh3_64(&bytes), 0x1cbc_1daf_3d58_8c13);
    let whole = plan(&[4, 4, 3, 4, 1], 42, 5, 5);
    assert_eq!(positions(&whole, 0), [11, 3, 6, 13, 4, 8, 1, 9, 10, 7, 5, 15, 14, 0, 12, 2]);
    assert_eq!(positions(&whole, 1), [11, 15, 8, 2, 0, 6, 1, 10, 3, 9, 7, 14, 4, 12, 13, 5]);
}

#[test]
fn the_coins_of_mirror_images_never_change() {
    // By that program too: bit k is row k.
    for (batch, expected) in [(0, 0xd733_555e_48cc_0a92), (1, 0xb7a1_e83f_5511_8517), (7, 0xae41_db2f_acb6_b8d2)] {
        let coins = (0..64).fold(0u64, |coins, row| coins | u64::from(is_mirrored(42, batch, row)) << row);
        assert_eq!(coins, expected, "{batch}");
    }
}

#[test]
fn every_permutation_is_equally_likely() {
    // 24 permutations of 4 things, 24,000 draws: chi-squared with 23 degrees of freedom is below 49.7 with
    // probability 0.999.
    let plan = plan(&[4], 7, 1, 1);
    let mut seen = std::collections::HashMap::new();
    for epoch in 0..24_000 {
        *seen.entry(positions(&plan, epoch)).or_insert(0u32) += 1;
    }
    assert_eq!(seen.len(), 24);
    let chi_squared: f64 = seen.values().map(|&n| (f64::from(n) - 1000.0).powi(2) / 1000.0).sum();
    assert!(chi_squared < 49.7, "{chi_squared}");
}

#[test]
fn a_sample_moves_evenly_over_the_pool() {
    // Single-row blocks under a pool of 64 of 4096: how far a sample comes behind its block's turn is the draw,
    // less the mean draw. Its mean square is that of a uniform distribution, 64^2 / 12.
    let plan = plan(&[1; 4096], 5, 1, 64);
    let mut blocks: Vec<u32> = (0..4096).collect();
    plan.block_stream(0).permute(&mut blocks);
    let mut turn = vec![0; 4096];
    (0..).zip(&blocks).for_each(|(j, &block)| turn[block as usize] = j);
    let order = plan.epoch(0);
    let moves: Vec<f64> = (0..)
        .zip(&order)
        .skip(128)
        .take(3840)
        .map(|(at, sample)| f64::from(at) - f64::from(turn[sample.block as usize]))
        .collect();
    let mean = moves.iter().sum::<f64>() / moves.len() as f64;
    let square = moves.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / moves.len() as f64;
    assert!((square.sqrt() / (64.0 / 12f64.sqrt()) - 1.0).abs() < 0.05, "{square}");
}

#[test]
fn two_epochs_differ_and_drop_other_samples() {
    for pool in [4, 10] {
        let plan = plan(&[64; 10], 0, 100, pool);
        let (a, b) = (plan.epoch(0), plan.epoch(1));
        assert_ne!(a, b);
        assert_ne!(a[600..], b[600..]);
    }
}

#[test]
fn what_cannot_be_ordered_is_an_error_that_says_so() {
    let error = Plan::new(PlanConfig { blocks: vec![3, 4], seed: 0, batch: 8, pool_blocks: 1 }).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the dataset has 7 samples, less than one batch of 8; use a batch of at most 7 or more data"
    );
    let error = Ranks::all(3).check(8).unwrap_err();
    assert_eq!(error.to_string(), "a batch of 8 cannot be cut into 3 equal slices; use a batch that 3 divides");
    let error = Ranks { ranks: 1..3, world: 2 }.check(8).unwrap_err();
    assert_eq!(error.to_string(), "ranks 1..3 were asked for, of a world of 2");
}

proptest! {
    #[test]
    fn an_epoch_holds_every_sample_once(
        blocks in prop::collection::vec(1u32..9, 1..12), seed in any::<u64>(), pool_blocks in 1usize..14, epoch in 0u64..4,
    ) {
        let plan = plan(&blocks, seed, 1, pool_blocks);
        let mut positions = positions(&plan, epoch);
        positions.sort_unstable();
        prop_assert_eq!(positions, (0..plan.samples()).collect::<Vec<_>>());
    }

    #[test]
    fn the_slices_of_the_ranks_tile_the_batch(world in 1usize..9, rows in 1usize..9, cut in any::<prop::sample::Index>()) {
        let (batch, all) = (world * rows, Ranks::all(world));
        all.check(batch).unwrap();
        let slices: Vec<_> = (0..world).flat_map(|rank| all.rows_of(rank, batch)).collect();
        prop_assert_eq!(slices, (0..batch).collect::<Vec<_>>());
        let numbered: Vec<_> = all.slices(Cursor { batch: 7 }, batch).take(world + 1).collect();
        prop_assert_eq!(&numbered[0], &(7, 0..rows));
        prop_assert_eq!(&numbered[world], &(8, 0..rows));
        let cut = cut.index(world + 1);
        let parts = [0..cut, cut..world].map(|ranks| Ranks { ranks, world }.rows(batch));
        prop_assert_eq!(parts.into_iter().flatten().collect::<Vec<_>>(), (0..batch).collect::<Vec<_>>());
    }

    #[test]
    fn no_more_blocks_are_begun_and_not_finished_than_the_pool_has(
        blocks in prop::collection::vec(1u32..9, 1..40), seed in any::<u64>(), pool_blocks in 1usize..14,
    ) {
        let plan = plan(&blocks, seed, 1, pool_blocks);
        let mut left = blocks.clone();
        let (mut begun, mut most) = (0usize, 0);
        for sample in plan.epoch(0) {
            let left = &mut left[sample.block as usize];
            begun += usize::from(*left == blocks[sample.block as usize]);
            most = most.max(begun);
            *left -= 1;
            begun -= usize::from(*left == 0);
        }
        prop_assert!(most <= plan.pool_blocks(), "{most}");
    }
}
