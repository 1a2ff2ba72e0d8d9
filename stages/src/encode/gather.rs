//! Cuts the stream of cropped images into the blocks that the autoencoder sees and the shards store.
//!
//! Where a block ends depends on positions and on which files were skipped, never on workers or devices: the batch that
//! a convolution runs on moves its results by rounding, so this is what makes encoded bytes reproducible.

use ndarray::Array4;
use pipeline::{BoxError, Emit, Regroup, Stopped};

use crate::data::{Decoded, ImageRef, PixelBatch, Pixels};

/// How the dataset's order is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Images in a block, at least 1.
    pub block: usize,
    /// Shard s holds the positions `[s * shard, (s + 1) * shard)`; a multiple of `block`, below 2^32.
    pub shard: u64,
}

impl Default for Layout {
    /// 64 images a block, 8,192 a shard: about 57 MB of f16 means, small enough to encode again after a crash.
    fn default() -> Self {
        Self { block: 64, shard: 8192 }
    }
}

/// Regroup: images to blocks. Blocks are filled with the images that were not skipped; none spans two shards, so the
/// last of a shard may be short. A block without images still carries what was skipped.
#[derive(Debug)]
pub struct Gather {
    layout: Layout,
    size: usize,
    images: Vec<ImageRef>,
    flags: Vec<u8>,
    /// Planar pixels of `images`.
    pixels: Vec<u8>,
    skipped: Vec<(ImageRef, String)>,
}

/// An image has another size than the block.
#[derive(Debug, thiserror::Error)]
#[error("{key}: cropped to {width}x{height} where {expected}x{expected} is expected")]
pub struct GatherError {
    key: String,
    width: usize,
    height: usize,
    expected: usize,
}

impl Gather {
    /// Blocks of images of `size` pixels a side.
    pub fn new(layout: Layout, size: usize) -> Self {
        Self { layout, size, images: Vec::new(), flags: Vec::new(), pixels: Vec::new(), skipped: Vec::new() }
    }

    fn shard_of(&self, image: &ImageRef) -> u64 {
        image.position / self.layout.shard
    }

    /// Takes one image, and hands out the blocks that it completes: at most one before and one with it.
    fn take(&mut self, item: Decoded, send: &mut dyn FnMut(PixelBatch) -> Result<(), Stopped>) -> Result<(), BoxError> {
        let (Decoded::Pixels(Pixels { image, .. }) | Decoded::Skipped { image, .. }) = &item;
        let begun = self.images.first().or_else(|| self.skipped.first().map(|(image, _)| image));
        if begun.is_some_and(|begun| self.shard_of(begun) != self.shard_of(image)) {
            send(self.block())?;
        }
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
        if self.images.len() == self.layout.block {
            send(self.block())?;
        }
        Ok(())
    }

    fn block(&mut self) -> PixelBatch {
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
        self.take(item, &mut |block| out.send(block))
    }

    fn finish(&mut self, out: &mut Emit<'_, PixelBatch>) -> Result<(), BoxError> {
        if !self.images.is_empty() || !self.skipped.is_empty() {
            out.send(self.block())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image(position: u64) -> ImageRef {
        let key = format!("a/{position}.jpg");
        ImageRef { position, source_index: position as u32, key, label: 0, path: "x.jpg".into() }
    }

    fn pixels(position: u64, size: usize) -> Decoded {
        let rgb = (0..size * size * 3).map(|i| (position as usize * 31 + i) as u8).collect();
        Decoded::Pixels(Pixels { image: image(position), height: size, width: size, rgb, flags: position as u8 })
    }

    fn blocks(layout: Layout, items: impl IntoIterator<Item = Decoded>) -> Vec<PixelBatch> {
        let mut gather = Gather::new(layout, 2);
        let mut sent = Vec::new();
        for item in items {
            gather
                .take(item, &mut |block| {
                    sent.push(block);
                    Ok(())
                })
                .unwrap();
        }
        if !gather.images.is_empty() || !gather.skipped.is_empty() {
            sent.push(gather.block());
        }
        sent
    }

    #[test]
    fn pixels_become_planar() {
        let block = &blocks(Layout { block: 2, shard: 4 }, [pixels(0, 2), pixels(1, 2)])[0];
        assert_eq!(block.pixels.shape(), [2, 3, 2, 2]);
        assert_eq!(block.pixels.as_slice().unwrap()[..12], [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]);
        assert_eq!(block.pixels[[1, 2, 1, 0]], 31 + 8);
        assert_eq!(block.flags, [0, 1]);
    }

    #[test]
    fn an_image_of_another_size_is_refused() {
        let mut gather = Gather::new(Layout::default(), 4);
        let error = gather.take(pixels(5, 2), &mut |_| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "a/5.jpg: cropped to 2x2 where 4x4 is expected");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// The model: within each shard, the images that were kept in chunks of the block size.
        #[test]
        fn blocks_hold_the_kept_images_of_one_shard_in_order(
            kept in prop::collection::vec(prop::bool::weighted(0.7), 0..60), block in 1..5usize, blocks_a_shard in 1..4u64,
        ) {
            let layout = Layout { block, shard: blocks_a_shard * block as u64 };
            let items = kept.iter().zip(0..).map(|(kept, position)| match kept {
                true => pixels(position, 2),
                false => Decoded::Skipped { image: image(position), reason: "damaged".to_owned() },
            });
            let sent = blocks(layout, items);

            let mut expected = Vec::new();
            for shard in kept.chunks(layout.shard as usize).zip(0..) {
                let (flags, first) = (shard.0, shard.1 * layout.shard);
                let positions: Vec<u64> =
                    flags.iter().zip(first..).filter(|(kept, _)| **kept).map(|(_, position)| position).collect();
                expected.extend(positions.chunks(block).map(<[u64]>::to_vec));
            }
            let positions = |block: &PixelBatch| block.images.iter().map(|image| image.position).collect::<Vec<_>>();
            let filled: Vec<_> = sent.iter().map(positions).filter(|positions| !positions.is_empty()).collect();
            prop_assert_eq!(filled, expected);

            let skipped: Vec<u64> = sent.iter().flat_map(|b| b.skipped.iter().map(|(image, _)| image.position)).collect();
            let expected: Vec<u64> = kept.iter().zip(0..).filter(|(kept, _)| !**kept).map(|(_, position)| position).collect();
            prop_assert_eq!(skipped, expected);
            for block in &sent {
                let images = block.images.iter().chain(block.skipped.iter().map(|(image, _)| image));
                let mut shards = images.map(|image| image.position / layout.shard);
                let first = shards.next().unwrap();
                prop_assert!(shards.all(|shard| shard == first));
            }
        }
    }
}
