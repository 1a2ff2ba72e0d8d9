//! Whole encodes of a small tree by a small random autoencoder: interrupted, continued, refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::f16;
use pipeline::{BoxError, Emit, Flow, FlowError, Interrupt, Regroup, Runtime, Stage, Worker};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use shards::{Codec, Dataset, Io, Scratch};
use tch::{Device, Kind};

use super::crop::{AdmCrop, Resize};
use super::decode::Decode;
use super::gather::{Gather, Layout};
use super::list::{ImageList, ListImages, Numbering};
use super::store::Store;
use super::vae::{VaeEncode, VaeEncodeError, latent_shape};
use super::write::{Opened, Recipe, WriteError, WriteShards, Written};
use crate::data::{ImageRef, PixelBatch, Place as Where};
use crate::nets::autoencoder::{AutoencoderConfig, AutoencoderKl, VaeChoice};
use crate::world::share::Share;

const SIZE: usize = 16;
const LAYOUT: Layout = Layout { batch: 2, block: 3, shard: 6 };
const STORE: Store = Store { logvar: true, flip: false, codec: Codec::ShuffleZstd { level: 1 } };
/// Images in the tree of [`Place::new`], of which two cannot be decoded.
const IMAGES: u64 = 20;

/// A tree of images and an autoencoder, in a folder of their own.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        for class in ["ant", "bee"] {
            fs::create_dir_all(place.images().join(class)).unwrap();
            for number in 0..9 {
                let (width, height) = (17 + number, 30 - number);
                let value = |i: u32| (i * (number + 3) + u32::from(class.as_bytes()[0])) as u8;
                let rgb: Vec<u8> = (0..width * height * 3).map(value).collect();
                let path = place.images().join(class).join(format!("{number}.png"));
                image::save_buffer(path, &rgb, width, height, image::ColorType::Rgb8).unwrap();
            }
            fs::write(place.images().join(class).join("bad.jpg"), "not an image").unwrap();
        }
        place.write_autoencoder(1.0);
        place
    }

    fn images(&self) -> std::path::PathBuf {
        self.folder.path().join("images")
    }

    fn list(&self) -> ImageList {
        ImageList::scan(&self.images(), Numbering::ImageNet).unwrap().permuted(7)
    }

    fn choice(&self) -> VaeChoice {
        VaeChoice::Directory(self.folder.path().join("vae"))
    }

    /// A diffusers directory with weights from a formula; `scale` multiplies those of the last layer of the encoder.
    fn write_autoencoder(&self, scale: f32) {
        let json = r#"{"block_out_channels": [4, 4, 4], "norm_num_groups": 2, "mid_block_add_attention": false}"#;
        let config = AutoencoderConfig::from_json(json, "test").unwrap();
        let mut tensors = Vec::new();
        for (name, shape) in AutoencoderKl::parameters(&config).unwrap() {
            let count = shape.iter().product::<i64>() as u64;
            let scale = if name.starts_with("quant_conv") { scale } else { 1.0 };
            // A fixed, uneven sequence in -0.5..0.5.
            let value = |i: u64| ((i * 7919 + name.len() as u64 * 104_729) % 1009) as f32 / 1009.0 - 0.5;
            let bytes: Vec<u8> = (0..count).flat_map(|i| (value(i) * scale).to_le_bytes()).collect();
            tensors.push((name, shape.iter().map(|n| *n as usize).collect::<Vec<_>>(), bytes));
        }
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        let dir = self.folder.path().join("vae");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("config.json"), json).unwrap();
        fs::write(dir.join("diffusion_pytorch_model.safetensors"), safetensors::serialize(views, None).unwrap())
            .unwrap();
    }

    fn open(&self, out: &Path, list: &ImageList, seed: u64) -> Result<Opened, WriteError> {
        let vae = self.choice().open(Device::Cpu, Kind::Float).unwrap();
        let schema = STORE.schema(latent_shape(&vae, SIZE), vae.scaling_factor(), vae.shift_factor(), LAYOUT);
        let provenance = BTreeMap::from([
            ("seed".to_owned(), seed.into()),
            ("list".to_owned(), format!("{:016x}", list.hash()).into()),
            ("third".to_owned(), (1.0 / 3.0).into()),
        ]);
        WriteShards::open(out, Recipe { schema, layout: LAYOUT, provenance }, list, Share::ALL)
    }

    /// One run of the flow, interrupted when item `interrupt_at` leaves the source; `None` if nothing was left to do.
    fn encode(&self, out: &Path, workers: usize, interrupt_at: Option<u64>) -> Result<Option<Written>, FlowError> {
        let writer = match self.open(out, &self.list(), 7).unwrap() {
            Opened::Complete(_) => return Ok(None),
            Opened::Unfinished(writer) => *writer,
        };
        let interrupt = Interrupt::default();
        let runtime = Runtime::new(interrupt.clone());
        let finished = Flow::from(ListImages::at(self.list(), writer.positions()))
            .regroup(InterruptAt { left: interrupt_at, interrupt })
            .then(Decode::skipping)
            .workers(workers)
            .then(AdmCrop::to(SIZE, Resize::Exact))
            .workers(workers)
            .regroup(Gather::new(LAYOUT, SIZE))
            .then(VaeEncode::on(self.choice(), vec![Device::Cpu], Kind::Float, STORE))
            .workers(workers)
            .into(writer)
            .run(&runtime)?;
        Ok(Some(finished.output))
    }
}

/// Passes items on, and requests an interrupt after so many.
struct InterruptAt {
    left: Option<u64>,
    interrupt: Interrupt,
}

impl Regroup for InterruptAt {
    type In = ImageRef;
    type Out = ImageRef;

    fn push(&mut self, item: ImageRef, out: &mut Emit<'_, ImageRef>) -> Result<(), BoxError> {
        match &mut self.left {
            Some(0) => self.interrupt.request(),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(out.send(item)?)
    }
}

/// Every file of a folder with its bytes.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

#[test]
fn a_dataset_holds_the_posteriors_of_the_images_in_the_lists_order() {
    let place = Place::new();
    let out = place.folder.path().join("out");
    let written = place.encode(&out, 2, None).unwrap().unwrap();
    let Written { samples, shards, skipped, complete, logvar, spread } = written;
    assert_eq!((samples, shards, skipped.len(), complete), (IMAGES - 2, 4, 2, true));
    let (logvar, spread) = (logvar.unwrap(), spread.unwrap());
    assert_eq!(logvar.counts.iter().sum::<u64>(), (IMAGES - 2) * 4 * 4 * 4);
    assert!(spread > 0.01, "{spread}");

    let dataset = Dataset::open(&out, Io::Pread).unwrap();
    let manifest = &dataset.manifest;
    assert_eq!(manifest.classes, ["ant", "bee"]);
    assert!(manifest.skipped.iter().all(|skipped| skipped.reason == "not a JPEG or PNG image (plain text)"));

    let list = place.list();
    let kept: Vec<_> =
        (0..IMAGES).map(|p| list.image(p).unwrap()).filter(|image| !image.key.ends_with("bad.jpg")).collect();
    let vae = place.choice().open(Device::Cpu, Kind::Float).unwrap();
    let mut at = 0;
    let (mut scratch, mut values) = (Scratch::new(), Vec::new());
    for shard in &dataset.shards {
        let mut sample = 0;
        for block in 0..shard.blocks() {
            let mut bytes = vec![0; shard.block_len(block) * 4 * 4 * 4 * 2];
            shard.read_block(block, 0, &mut bytes, &mut scratch).unwrap();
            for mean in bytes.chunks(4 * 4 * 4 * 2) {
                let image = &kept[at];
                assert_eq!(shard.key(sample), Some(image.key.as_str()));
                assert_eq!((shard.labels()[sample], shard.source_indices()[sample]), (image.label, image.source_index));
                assert_eq!(shard.flags()[sample], crate::data::flags::PNG);
                let mean: Vec<f16> = mean.as_chunks::<2>().0.iter().map(|pair| f16::from_le_bytes(*pair)).collect();
                let expected = posterior_mean(&vae, image);
                let worst = mean.iter().zip(&expected).map(|(a, b)| (a.to_f32() - b).abs()).fold(0.0, f32::max);
                // Half a unit in the last place of f16 below 4, and the rounding of another batch size.
                assert!(worst <= 1.1e-3, "{}: {worst}", image.key);
                values.extend(mean);
                (at, sample) = (at + 1, sample + 1);
            }
        }
    }
    assert_eq!(at, kept.len());

    let channel: Vec<f64> = values.chunks(16).skip(1).step_by(4).flatten().map(|v| v.to_f64()).collect();
    let mean = channel.iter().sum::<f64>() / channel.len() as f64;
    let variance = channel.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / channel.len() as f64;
    assert!((manifest.stats["mean"][1].mean - mean).abs() < 1e-12);
    assert!((manifest.stats["mean"][1].std - variance.sqrt()).abs() < 1e-9);
    assert!(variance > 1e-4, "a constant channel would make the comparison empty");
}

fn file(image: &ImageRef) -> &Path {
    match &image.place {
        Where::File(path) => path,
        Where::Member { .. } => panic!("not a file"),
    }
}

fn posterior_mean(vae: &AutoencoderKl, image: &ImageRef) -> Vec<f32> {
    let picture = image::open(file(image)).unwrap().into_rgb8();
    let (width, height) = picture.dimensions();
    let rgb = super::crop::centre_crop(picture.into_raw(), width as usize, height as usize, SIZE);
    let pixels = tch::Tensor::from_slice(&rgb).reshape([1, SIZE as i64, SIZE as i64, 3]).permute([0, 3, 1, 2]);
    let pixels = pixels.to_kind(tch::Kind::Float) / 127.5 - 1.0;
    let (mean, _) = tch::no_grad(|| vae.encode_moments(&pixels)).unwrap();
    Vec::try_from(mean.contiguous().view(-1)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn interrupted_and_continued_gives_the_same_bytes_as_one_run(
        interrupts in prop::collection::vec((0..IMAGES, 1..4usize), 1..4), workers in 1..4usize,
    ) {
        let place = Place::new();
        let (whole, parts) = (place.folder.path().join("whole"), place.folder.path().join("parts"));
        place.encode(&whole, 1, None).unwrap();
        for (at, workers) in interrupts {
            if let Some(written) = place.encode(&parts, workers, Some(at)).unwrap() {
                let left = contents(&parts);
                prop_assert!(left.keys().all(|name| !name.ends_with(".tmp")));
                prop_assert_eq!(left.contains_key("dataset.json"), written.complete);
                prop_assert_eq!(left.keys().filter(|name| name.ends_with(".lat")).count(), written.shards);
            }
        }
        place.encode(&parts, workers, None).unwrap();
        prop_assert!(contents(&whole) == contents(&parts));
    }
}

#[test]
fn a_complete_dataset_is_left_alone_and_another_recipe_is_refused() {
    let place = Place::new();
    let out = place.folder.path().join("out");
    place.encode(&out, 1, Some(8)).unwrap();
    let error = place.open(&out, &place.list(), 8).unwrap_err().to_string();
    assert!(
        error.contains("provenance.seed = 7 where this command says 8") && error.contains("shard-00000.lat"),
        "{error}"
    );

    place.encode(&out, 1, None).unwrap();
    let before = contents(&out);
    assert!(place.encode(&out, 1, None).unwrap().is_none());
    let error = place.open(&out, &place.list(), 8).unwrap_err().to_string();
    assert!(
        error.contains("provenance.seed = 7 where this command says 8") && error.contains("dataset.json"),
        "{error}"
    );
    assert!(contents(&out) == before);
}

#[test]
fn a_folder_with_something_else_in_it_is_refused() {
    let place = Place::new();
    let error = place.open(&place.images(), &place.list(), 7).unwrap_err();
    assert!(matches!(&error, WriteError::Occupied { found, .. } if found == "ant"), "{error}");
}

#[test]
fn shards_that_no_longer_fit_the_images_are_refused() {
    let place = Place::new();
    let out = place.folder.path().join("out");
    place.encode(&out, 1, None).unwrap();
    fs::remove_file(out.join("dataset.json")).unwrap();

    let list = place.list();
    let bad = (0..IMAGES).map(|p| list.image(p).unwrap()).find(|image| image.key.ends_with("bad.jpg")).unwrap();
    fs::copy(place.images().join("ant/0.png"), file(&bad)).unwrap();
    let error = place.open(&out, &list, 7).unwrap_err();
    assert!(matches!(&error, WriteError::NoLongerSkipped { image, .. } if *image == bad.place), "{error}");
    fs::write(file(&bad), "not an image").unwrap();

    let last = out.join("shard-00003.lat");
    fs::copy(&last, out.join("shard-00004.lat")).unwrap();
    let error = place.open(&out, &list, 7).unwrap_err();
    assert!(matches!(&error, WriteError::Surplus { path, shards: 4 } if path.ends_with("shard-00004.lat")), "{error}");
    fs::remove_file(out.join("shard-00004.lat")).unwrap();

    let mut bytes = fs::read(&last).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&last, bytes).unwrap();
    let error = place.open(&out, &list, 7).unwrap_err();
    assert!(matches!(error, WriteError::Damaged { .. }) && error.to_string().contains("delete this file"), "{error}");
}

#[test]
fn shards_that_are_missing_anywhere_are_made_again_and_the_others_stay() {
    let place = Place::new();
    let out = place.folder.path().join("out");
    place.encode(&out, 2, None).unwrap();
    let whole = contents(&out);
    for missing in [&["shard-00000.lat"][..], &["shard-00001.lat", "shard-00003.lat"], &["shard-00002.lat"]] {
        fs::remove_file(out.join("dataset.json")).unwrap();
        missing.iter().for_each(|name| fs::remove_file(out.join(name)).unwrap());
        place.encode(&out, 2, None).unwrap();
        assert!(contents(&out) == whole, "{missing:?}");
    }
}

#[test]
fn a_list_of_which_nothing_can_be_decoded_is_an_error() {
    let place = Place::new();
    for entry in fs::read_dir(place.images().join("ant")).unwrap() {
        fs::write(entry.unwrap().path(), "not an image").unwrap();
    }
    for entry in fs::read_dir(place.images().join("bee")).unwrap() {
        fs::write(entry.unwrap().path(), "not an image").unwrap();
    }
    let error = place.encode(&place.folder.path().join("out"), 2, None).unwrap_err().to_string();
    assert!(error.contains("none of the 6 images of shard 0 can be decoded"), "{error}");
}

#[test]
fn a_posterior_that_f16_cannot_hold_is_an_error_that_names_the_image() {
    let place = Place::new();
    place.write_autoencoder(1e9);
    let mut stage =
        VaeEncode::on(place.choice(), vec![Device::Cpu], Kind::Float, STORE)(Worker { index: 0, workers: 1 }).unwrap();
    let list = place.list();
    let block = PixelBatch {
        images: (0..3).map(|p| list.image(p).unwrap()).collect(),
        flags: vec![0; 3],
        pixels: ndarray::Array4::from_shape_fn((3, 3, SIZE, SIZE), |(b, c, y, x)| {
            (b * 90 + c * 7 + y * 5 + x * x) as u8
        }),
        skipped: Vec::new(),
    };
    let error = stage.process(block).unwrap_err();
    let expected = list.image(0).unwrap().key;
    let error = error.downcast_ref::<VaeEncodeError>().unwrap();
    assert!(matches!(error, VaeEncodeError::NotFinite { key, column: "mean", .. } if *key == expected), "{error}");
}
