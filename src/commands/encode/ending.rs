//! What a person reads while an encode runs and when it ends.

use std::path::PathBuf;

use pipeline::Report;
use shards::Histogram;
use stages::encode::gather::Layout;
use stages::encode::store::Store;
use stages::encode::write::Written;

use crate::exit::Outcome;
use crate::show;

/// Skipped files that are named on the screen; the manifest names all.
const NAMED: usize = 50;

/// Share of skipped files above which something is likely to be wrong with the images.
const MANY: f64 = 0.01;

/// Rounding of f16, relative: half of its last place, 2^-11.
const F16_ROUNDING: f64 = 1.0 / 2048.0;

/// Images of the batches that the autoencoder is done with; the last of a block may hold fewer than that.
pub(super) fn encoded(report: &Report, layout: Layout) -> u64 {
    let batches = report.stages.iter().find(|stage| stage.name == "VaeEncode").map_or(0, |stage| stage.items);
    batches * layout.batch as u64
}

pub(super) fn progress_line(done: u64, first: u64, total: u64, seconds: f64) -> String {
    let rate = (done - first) as f64 / seconds.max(1e-9);
    let left = match total.saturating_sub(done) {
        left if rate > 0.0 => format!(", {} left", show::duration(left as f64 / rate)),
        _ => String::new(),
    };
    format!("encoded {done}/{total} images  {rate:.1} images/s{left}")
}

/// What the end of an encode says.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(super) out: PathBuf,
    pub(super) classes: Vec<String>,
    /// Classes that have an image.
    pub(super) used: usize,
    /// Images of the dataset.
    pub(super) whole: u64,
    /// Images of this process.
    pub(super) total: u64,
    pub(super) store: Store,
}

impl Ending {
    pub(super) fn tell(&self, written: &Written) -> Outcome {
        let Self { out, classes, used, whole, total, store } = self;
        let Written { samples, shards, skipped, complete, logvar, spread } = written;
        let out = out.display();
        if !complete {
            return Outcome::Interrupted(format!(
                "stopped: {samples} of {total} images are in {shards} finished shards of {out}; run the same command \
                 to {}",
                if *shards > 0 { "continue after them" } else { "begin again" }
            ));
        }
        let plural = if *shards == 1 { "" } else { "s" };
        show::result(&format!(
            "encoded {samples} images of {} classes ({}) into {shards} shard{plural} in {out}",
            classes.len(),
            match &classes[..] {
                [some @ .., _] if classes.len() > 4 => format!("{}, ..", some[..3].join(", ")),
                all => all.join(", "),
            },
        ));
        if *used < classes.len() {
            show::say(&format!(
                "{used} of the {} classes have images; a model trained on this knows no others (--renumber counts the \
                 folders of a part of ImageNet from 0)",
                classes.len()
            ));
        }
        if let (Some(logvar), Some(spread)) = (logvar, spread) {
            show::result(&posterior(logvar, *spread, *store));
        }
        if !skipped.is_empty() {
            for file in skipped.iter().take(NAMED) {
                show::say(&format!("skipped {}: {}", file.key, file.reason));
            }
            if skipped.len() > NAMED {
                show::say(&format!("skipped {} more; dataset.json lists them all", skipped.len() - NAMED));
            }
            let share = skipped.len() as f64 / *whole as f64;
            show::result(&format!("{} of {whole} files could not be decoded and were skipped", skipped.len()));
            if share > MANY {
                show::say(&format!(
                    "WARNING: {} of the images are missing from {out}. More than 1 % says that something is wrong with \
                     the images or their disk; look at the reasons above before you train on the rest.",
                    show::percent(share)
                ));
            }
        }
        Outcome::Done
    }

    /// Of one of several processes that encode: its share is there, and shards of others are `missing`, or one of them completed the
    /// dataset.
    pub(super) fn tell_share(&self, written: &Written, missing: u64) -> Outcome {
        let Written { samples, shards, skipped, .. } = written;
        let out = self.out.display();
        let rest = match missing {
            0 => "another process completed the dataset".to_owned(),
            1 => "a shard of another process is not there yet".to_owned(),
            missing => format!("{missing} of other processes are not there yet"),
        };
        let plural = if *shards == 1 { "" } else { "s" };
        show::result(&format!("{shards} shard{plural} of this process, {samples} images, are in {out}; {rest}"));
        for file in skipped.iter().take(NAMED) {
            show::say(&format!("skipped {}: {}", file.key, file.reason));
        }
        Outcome::Done
    }
}

/// What the log-variances say about storing them. `spread` is the deviation of the means, root mean square over
/// channels.
fn posterior(logvar: &Histogram, spread: f64, store: Store) -> String {
    let Histogram { low, width, counts, .. } = logvar;
    let total: u64 = counts.iter().sum();
    let centre = |bin: usize| low + (bin as f64 + 0.5) * width;
    // The value below which this share of all lies, to half a bin.
    let quantile = |share: f64| {
        let mut left = share * total as f64;
        let bin = counts.iter().position(|count| {
            left -= *count as f64;
            left <= 0.0
        });
        centre(bin.unwrap_or(counts.len() - 1))
    };
    let deviation: f64 =
        counts.iter().enumerate().map(|(bin, count)| (centre(bin) / 2.0).exp() * *count as f64).sum::<f64>()
            / total.max(1) as f64;
    let rounding = spread * F16_ROUNDING;
    let meaning = match deviation {
        deviation if deviation < rounding => format!(
            "less than f16 rounds a mean of that size ({rounding:.1e}): --store mean would train the same and need less \
             space"
        ),
        deviation if deviation < 0.01 * spread => {
            "little: --store mean would train nearly the same and need less space".to_owned()
        }
        _ => "enough that training should draw from it: keep the log-variances".to_owned(),
    };
    let flips = if store.flip { " (of the images as they are)" } else { "" };
    format!(
        "posterior{flips}: log-variance {:.1} to {:.1} (1st to 99th percentile), median {:.1}; mean deviation \
         {deviation:.1e}, {} of the means' {spread:.2}, {meaning}",
        quantile(0.01),
        quantile(0.99),
        quantile(0.5),
        show::percent(deviation / spread),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use shards::Codec;

    fn of(logvar: f64) -> String {
        let mut histogram = Histogram { low: -30.0, width: 0.5, counts: vec![0; 100], below: 0, above: 0 };
        histogram.counts[((logvar + 30.0) / 0.5) as usize] = 1000;
        posterior(&histogram, 4.0, Store { logvar: true, flip: false, codec: Codec::None })
    }

    #[test]
    fn a_posterior_is_judged_by_its_deviation_against_that_of_the_means() {
        assert!(of(-20.0).contains("need less space") && of(-20.0).contains("than f16 rounds"), "{}", of(-20.0));
        assert!(of(-8.0).contains("train nearly the same"), "{}", of(-8.0));
        assert!(of(-1.0).contains("keep the log-variances"), "{}", of(-1.0));
        // exp(-19.75 / 2) = 5.1e-5, of 4.
        assert!(of(-20.0).contains("median -19.8; mean deviation 5.1e-5, 0.0 % of the means' 4.00"), "{}", of(-20.0));
    }
}
