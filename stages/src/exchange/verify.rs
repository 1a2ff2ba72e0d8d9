//! Verification of a dataset on several threads: a shard is the unit, since shards are independent.
//!
//! ```text
//! ShardNumbers  which shard                       -> usize
//! VerifyShard   read it, compare with dataset.json -> Verdict
//! Verdicts      adds them up
//! ```

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pipeline::{BoxError, End, Sink, Source, Stage, Stop, Worker};
use shards::{Depth, Io, Manifest, ShardError, Verified, verify_shard};

use crate::encode::list::wnids;

/// Images of ImageNet-1k: train, validation.
const IMAGENET: [u64; 2] = [1_281_167, 50_000];

/// Source: the shards of a dataset, from 0.
#[derive(Debug)]
pub struct ShardNumbers(std::ops::Range<usize>);

impl ShardNumbers {
    /// All that the manifest lists.
    pub fn of(manifest: &Manifest) -> Self {
        Self(0..manifest.shards.len())
    }
}

impl Source for ShardNumbers {
    type Item = usize;

    fn next(&mut self, _stop: &Stop) -> Result<Option<usize>, BoxError> {
        Ok(self.0.next())
    }
}

/// What is wrong with one shard.
#[derive(Debug)]
pub struct Verdict {
    verified: Verified,
    errors: Vec<ShardError>,
}

/// Stage: verifies one shard. Damage is its result, not its error.
#[derive(Debug)]
pub struct VerifyShard {
    dir: PathBuf,
    manifest: Arc<Manifest>,
    depth: Depth,
}

impl VerifyShard {
    /// Factory for the shards that `manifest` lists in `dir`.
    pub fn of(
        dir: &Path,
        manifest: &Arc<Manifest>,
        depth: Depth,
    ) -> impl Fn(Worker) -> Result<Self, BoxError> + Send + Sync + 'static {
        let (dir, manifest) = (dir.to_owned(), Arc::clone(manifest));
        move |_| Ok(Self { dir: dir.clone(), manifest: Arc::clone(&manifest), depth })
    }
}

impl Stage for VerifyShard {
    type In = usize;
    type Out = Verdict;

    fn process(&mut self, number: usize) -> Result<Verdict, BoxError> {
        let mut errors = Vec::new();
        // Reads, and not a mapping: an error of the disk is then one bad block, and what comes after it is read too.
        let verified =
            verify_shard(&self.dir, &self.manifest, number, Io::Pread, self.depth, &mut |error| errors.push(error));
        Ok(Verdict { verified, errors })
    }
}

/// All that was found.
#[derive(Debug, Default)]
pub struct Findings {
    /// What was read, over all shards.
    pub verified: Verified,
    /// What is wrong, shard by shard.
    pub errors: Vec<ShardError>,
}

/// Sink: adds the verdicts up.
#[derive(Debug, Default)]
pub struct Verdicts(Findings);

impl Sink for Verdicts {
    type In = Verdict;
    type Output = Findings;

    fn consume(&mut self, verdict: Verdict) -> Result<ControlFlow<()>, BoxError> {
        self.0.verified += verdict.verified;
        self.0.errors.extend(verdict.errors);
        Ok(ControlFlow::Continue(()))
    }

    fn finish(self, _: End) -> Result<Findings, BoxError> {
        Ok(self.0)
    }
}

/// What is odd about a dataset whose bytes are all in order; empty for most.
pub fn warnings(manifest: &Manifest) -> Vec<String> {
    if manifest.classes == wnids::names() && !IMAGENET.contains(&manifest.samples) {
        return vec![format!(
            "the classes are those of ImageNet-1k, and there are {} samples where train has {} and validation {}",
            manifest.samples, IMAGENET[0], IMAGENET[1]
        )];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pipeline::{Flow, Runtime};
    use shards::DType;

    use super::super::fixture::{self, LOGVAR, MEAN};
    use super::*;

    fn findings(dir: &Path, depth: Depth) -> Findings {
        let manifest = Arc::new(Manifest::load(dir).unwrap());
        let flow = Flow::from(ShardNumbers::of(&manifest)).then(VerifyShard::of(dir, &manifest, depth)).workers(3);
        flow.into(Verdicts::default()).run(&Runtime::default()).unwrap().output
    }

    #[test]
    fn damage_in_several_shards_is_reported_in_their_order_by_any_worker() {
        let dir = tempfile::tempdir().unwrap();
        fixture::dataset(dir.path(), &fixture::schema(&[MEAN, LOGVAR], DType::F16), &[200, 64, 64, 70]);
        let whole = findings(dir.path(), Depth::Full);
        assert_eq!((whole.verified.shards, whole.verified.blocks, whole.verified.samples), (4, 8, 398));
        assert!(whole.errors.is_empty() && whole.verified.bad == 0);
        let bytes: u64 =
            (0..4).map(|i| fs::metadata(dir.path().join(format!("shard-0000{i}.lat"))).unwrap().len()).sum();
        assert_eq!(whole.verified.bytes, bytes);

        for shard in [3, 1] {
            let path = dir.path().join(format!("shard-0000{shard}.lat"));
            let mut bytes = fs::read(&path).unwrap();
            bytes[4096 + 9] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
        fs::remove_file(dir.path().join("shard-00002.lat")).unwrap();
        let found = findings(dir.path(), Depth::Full);
        let texts: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        let places = ["shard-00001.lat", "shard-00001.lat", "shard-00002.lat", "shard-00003.lat", "shard-00003.lat"];
        assert_eq!(texts.len(), places.len(), "{texts:?}");
        assert!(texts.iter().zip(places).all(|(text, place)| text.contains(place)), "{texts:?}");
        // A flipped bit in a frame is not seen from the ends.
        assert_eq!(findings(dir.path(), Depth::Fast).errors.len(), 1);
    }

    #[test]
    fn a_part_of_imagenet_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let dataset = fixture::dataset(dir.path(), &fixture::schema(&[MEAN], DType::F16), &[3]);
        let mut manifest = dataset.manifest.clone();
        assert!(warnings(&manifest).is_empty());
        manifest.classes = wnids::names();
        assert!(warnings(&manifest)[0].contains("there are 3 samples where train has 1281167"));
        for whole in IMAGENET {
            manifest.samples = whole;
            assert!(warnings(&manifest).is_empty());
        }
        manifest.classes[7] = "cat".to_owned();
        manifest.samples = 4;
        assert!(warnings(&manifest).is_empty());
    }
}
