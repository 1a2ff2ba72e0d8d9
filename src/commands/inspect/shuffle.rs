//! `pipeline inspect --shuffle-report`: how well training would mix a dataset, beside a true permutation.

use std::fmt::Write;

use anyhow::Result;
use serde_json::{Value, json};
use shards::Dataset;
use stages::load::inflate::BlockTable;
use stages::load::plan::{Plan, PlanConfig};
use stages::load::quality::{Quality, compare};

/// One figure of both orders.
type Figure = fn(&Quality) -> f64;

/// The order of one epoch, measured.
#[derive(Debug)]
pub(super) struct ShuffleReport {
    batch: usize,
    pool_blocks: usize,
    blocks: usize,
    planned: Quality,
    uniform: Quality,
}

impl ShuffleReport {
    pub(super) fn of(dataset: &Dataset, batch: usize, pool_blocks: usize, seed: u64) -> Result<Self> {
        let blocks = BlockTable::of(dataset).sizes();
        let plan = Plan::new(PlanConfig { blocks, seed, batch, pool_blocks })?;
        let labels: Vec<i32> = dataset.shards.iter().flat_map(|shard| shard.labels()).copied().collect();
        let (planned, uniform) = compare(&plan, 0, &labels);
        Ok(Self { batch, pool_blocks: plan.pool_blocks(), blocks: plan.blocks().len(), planned, uniform })
    }

    pub(super) fn json(&self) -> Value {
        let of = |quality: &Quality| {
            json!({
                "distance": quality.distance,
                "class_entropy_bits": quality.class_entropy,
                "classes": quality.classes,
                "blocks": quality.blocks,
                "again": quality.again,
            })
        };
        json!({
            "batch": self.batch,
            "pool_blocks": self.pool_blocks,
            "blocks": self.blocks,
            "planned": of(&self.planned),
            "permutation": of(&self.uniform),
        })
    }
}

impl std::fmt::Display for ShuffleReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { batch, pool_blocks, blocks, planned, uniform } = self;
        let mut text = format!(
            "shuffle of epoch 0, batches of {batch}, a pool of {pool_blocks} of {blocks} blocks\n{:<62}{:>10}{:>14}\n",
            "", "planned", "permutation"
        );
        let rows: [(&str, Figure); 5] = [
            ("distance of neighbours in a batch, share of the dataset", |q| q.distance),
            ("entropy of the classes in a batch, bits", |q| q.class_entropy),
            ("classes in a batch", |q| q.classes),
            ("blocks that a batch comes from", |q| q.blocks),
            ("from a sample to the next of its block, share of the epoch", |q| q.again),
        ];
        for (name, of) in rows {
            let _ = writeln!(text, "  {name:<60}{:>10.4}{:>14.4}", of(planned), of(uniform));
        }
        f.write_str(text.trim_end())
    }
}
