//! Cuts the stream of cropped images into the batches that the autoencoder sees.
//!
//! Where a batch ends depends on positions and on which files were skipped, never on workers or devices: the batch that
//! a convolution runs on moves its results by rounding, so this is what makes encoded bytes reproducible. Batches are
//! smaller than the blocks that the shards store where that is what the device wants; none spans two blocks.

use ndarray::Array4;
use pipeline::{BoxError, Emit, Regroup, Stopped};

use crate::data::{Decoded, ImageRef, PixelBatch, Pixels};

/// How the dataset's order is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Images that the autoencoder sees at once, 1 to `block`.
    pub batch: usize,
    /// Images in a block of a shard, at least 1.
    pub block: usize,
    /// Shard s holds the positions `[s * shard, (s + 1) * shard)`; a multiple of `block`, at most
    /// [`shards::MAX_SAMPLES`].
    pub shard: u64,
}

impl Default for Layout {
    /// 64 images a block, 8,192 a shard: about 57 MB of f16 means, small enough to encode again after a crash.
    fn default() -> Self {
        Self { batch: 64, block: 64, shard: 8192 }
    }
}

/// Regroup: images to batches. Blocks are filled with the images that were not skipped, batches end where blocks do, and
/// no block spans two shards: so the last of a block or of a shard may be short. A batch without images still carries
/// what was skipped.
#[derive(Debug)]
pub struct Gather {
    layout: Layout,
    size: usize,
    /// Images of the present block that were sent already.
    sent: usize,
    images: Vec<ImageRef>,
    flags: Vec<u8>,
    /// Planar pixels of `images`.
    pixels: Vec<u8>,
    skipped: Vec<(ImageRef, String)>,
}

/// An image has another size than the batch.
#[derive(Debug, thiserror::Error)]
#[error("{key}: cropped to {width}x{height} where {expected}x{expected} is expected")]
pub struct GatherError {
    key: String,
    width: usize,
    height: usize,
    expected: usize,
}

impl Gather {
    /// Batches of images of `size` pixels a side.
    pub fn new(layout: Layout, size: usize) -> Self {
        Self { layout, size, sent: 0, images: Vec::new(), flags: Vec::new(), pixels: Vec::new(), skipped: Vec::new() }
    }

    /// Takes one image, and hands out the batches that it completes: at most two.
    fn take(&mut self, item: Decoded, send: &mut dyn FnMut(PixelBatch) -> Result<(), Stopped>) -> Result<(), BoxError> {
        let (Decoded::Pixels(Pixels { image, .. }) | Decoded::Skipped { image, .. }) = &item;
        let ends_shard = (image.position + 1).is_multiple_of(self.layout.shard);
        match item {
            Decoded::Skipped { image, reason } => self.skipped.push((image, reason)),
            Decoded::Pixels(Pixels { image, height, width, rgb, flags }) => {
                if (width, height) != (self.size, self.size) {
                    return Err(GatherError { key: image.key, width, height, expected: self.size }.into());
                }
                let rgb = rgb.as_chunks::<3>().0;
                for channel in 0..3 {
                    self.pixels.extend(rgb.iter().map(|pixel| pixel[channel]));
                }
                self.images.push(image);
                self.flags.push(flags);
            }
        }
        if self.images.len() == self.layout.batch.min(self.layout.block - self.sent) {
            self.sent = (self.sent + self.images.len()) % self.layout.block;
            send(self.batch())?;
        }
        if ends_shard {
            self.rest(send)?;
            self.sent = 0;
        }
        Ok(())
    }

    /// Hands out what has come since the last batch.
    fn rest(&mut self, send: &mut dyn FnMut(PixelBatch) -> Result<(), Stopped>) -> Result<(), Stopped> {
        match self.images.is_empty() && self.skipped.is_empty() {
            true => Ok(()),
            false => send(self.batch()),
        }
    }

    fn batch(&mut self) -> PixelBatch {
        let shape = (self.images.len(), 3, self.size, self.size);
        let room = Vec::with_capacity(self.pixels.len());
        let pixels = std::mem::replace(&mut self.pixels, room);
        PixelBatch {
            images: std::mem::take(&mut self.images),
            flags: std::mem::take(&mut self.flags),
            pixels: Array4::from_shape_vec(shape, pixels).expect("every image added 3 * size * size values"),
            skipped: std::mem::take(&mut self.skipped),
        }
    }
}

impl Regroup for Gather {
    type In = Decoded;
    type Out = PixelBatch;

    fn push(&mut self, item: Decoded, out: &mut Emit<'_, PixelBatch>) -> Result<(), BoxError> {
        self.take(item, &mut |batch| out.send(batch))
    }

    fn finish(&mut self, out: &mut Emit<'_, PixelBatch>) -> Result<(), BoxError> {
        Ok(self.rest(&mut |batch| out.send(batch))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Place;
    use proptest::prelude::*;

    fn image(position: u64) -> ImageRef {
        let key = format!("a/{position}.jpg");
        ImageRef { position, source_index: position as u32, key, label: 0, place: Place::File("x.jpg".into()) }
    }

    fn pixels(position: u64, size: usize) -> Decoded {
        let rgb = (0..size * size * 3).map(|i| (position as usize * 31 + i) as u8).collect();
        Decoded::Pixels(Pixels { image: image(position), height: size, width: size, rgb, flags: position as u8 })
    }

    fn batches(layout: Layout, items: impl IntoIterator<Item = Decoded>) -> Vec<PixelBatch> {
        let mut gather = Gather::new(layout, 2);
        let mut sent = Vec::new();
        let mut keep = |batch| {
            sent.push(batch);
            Ok(())
        };
        for item in items {
            gather.take(item, &mut keep).unwrap();
        }
        gather.rest(&mut keep).unwrap();
        sent
    }

    #[test]
    fn pixels_become_planar() {
        let batch = &batches(Layout { batch: 2, block: 4, shard: 4 }, [pixels(0, 2), pixels(1, 2)])[0];
        assert_eq!(batch.pixels.shape(), [2, 3, 2, 2]);
        assert_eq!(batch.pixels.as_slice().unwrap()[..12], [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]);
        assert_eq!(batch.pixels[[1, 2, 1, 0]], 31 + 8);
        assert_eq!(batch.flags, [0, 1]);
    }

    #[test]
    fn an_image_of_another_size_is_refused() {
        let mut gather = Gather::new(Layout::default(), 4);
        let error = gather.take(pixels(5, 2), &mut |_| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "a/5.jpg: cropped to 2x2 where 4x4 is expected");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// The model: within each shard, the images that were kept in chunks of the block size, and those in chunks of
        /// the batch size.
        #[test]
        fn batches_hold_the_kept_images_of_one_block_in_order(
            kept in prop::collection::vec(prop::bool::weighted(0.7), 0..60), batch in 1..5usize, more in 0..5usize,
            blocks_a_shard in 1..4u64,
        ) {
            let block = batch + more;
            let layout = Layout { batch, block, shard: blocks_a_shard * block as u64 };
            let items = kept.iter().zip(0..).map(|(kept, position)| match kept {
                true => pixels(position, 2),
                false => Decoded::Skipped { image: image(position), reason: "damaged".to_owned() },
            });
            let sent = batches(layout, items);

            let mut expected = Vec::new();
            for shard in kept.chunks(layout.shard as usize).zip(0..) {
                let (flags, first) = (shard.0, shard.1 * layout.shard);
                let positions: Vec<u64> =
                    flags.iter().zip(first..).filter(|(kept, _)| **kept).map(|(_, position)| position).collect();
                expected.extend(positions.chunks(block).flat_map(|block| block.chunks(batch)).map(<[u64]>::to_vec));
            }
            let positions = |batch: &PixelBatch| batch.images.iter().map(|image| image.position).collect::<Vec<_>>();
            let filled: Vec<_> = sent.iter().map(positions).filter(|positions| !positions.is_empty()).collect();
            prop_assert_eq!(filled, expected);

            let skipped: Vec<u64> = sent.iter().flat_map(|b| b.skipped.iter().map(|(image, _)| image.position)).collect();
            let expected: Vec<u64> = kept.iter().zip(0..).filter(|(kept, _)| !**kept).map(|(_, position)| position).collect();
            prop_assert_eq!(skipped, expected);
            for batch in &sent {
                let images = batch.images.iter().chain(batch.skipped.iter().map(|(image, _)| image));
                let mut shards = images.map(|image| image.position / layout.shard);
                let first = shards.next().unwrap();
                prop_assert!(shards.all(|shard| shard == first));
            }
        }
    }
}
