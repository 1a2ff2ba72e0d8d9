//! What `pipeline train --dry-run` says below the configuration: what the run would cost.

use stages::device::{Device, Kind, precision_name};
use stages::load::LoadMemory;
use stages::method::config::LatentShape;
use stages::method::cost::{DeviceMemory, ForwardMacs, snapshot_bytes};
use stages::method::layout::parameter_count;
use stages::train::config::TrainConfig;

use super::memory_line;

/// One line a topic. `loader` holds the samples of the dataset and what loading them takes, unless there is no dataset; `world` is
/// the number of ranks, which divide the batch.
pub(super) fn lines(
    config: &TrainConfig,
    data: &LatentShape,
    loader: Option<(u64, LoadMemory)>,
    device: Device,
    kind: Kind,
    world: usize,
) -> Vec<String> {
    let TrainConfig { model, objective, train, .. } = config;
    let parameters = |projector| parameter_count(model, data, projector);
    let mut lines = vec![format!("parameters: {} ({} with the projector)", parameters(false), parameters(true))];

    let macs = ForwardMacs::of(model, data, objective);
    let ForwardMacs { attention, mlp, image_modulation, token_modulation, ends, projector } = macs;
    let parts = [
        ("attention", attention),
        ("MLP", mlp),
        ("modulation of images", image_modulation),
        ("modulation of tokens", token_modulation),
        ("embeddings and output", ends),
    ];
    let parts: Vec<_> = parts.iter().map(|(name, macs)| format!("{name} {}", quantity(*macs, "MAC"))).collect();
    lines.push(format!("forward pass of a view: {} ({})", quantity(macs.network(), "MAC"), parts.join(", ")));
    if projector > 0 {
        lines.push(format!("projector, for a view: {}", quantity(projector, "MAC")));
    }
    let flop = macs.training_flop(objective.views);
    let images = train.steps * train.batch;
    lines.push(format!(
        "training: {} an image (views {} x 2 FLOP a MAC x 3, a backward pass being two forward ones), {} a step, {} in all",
        quantity(flop, "FLOP"),
        objective.views,
        real_quantity(flop as f64 * train.batch as f64, "FLOP"),
        real_quantity(flop as f64 * images as f64, "FLOP"),
    ));

    let micro_batch = train.batch / (train.micro_batches * world as u64);
    let memory = DeviceMemory::of(model, data, objective, micro_batch, kind);
    let DeviceMemory { weights, gradients, moments, average, activations } = memory;
    lines.push(format!(
        "device memory{}: about {} (weights {}, gradients {}, moments {}, average {}, activations of {micro_batch} images {})",
        if world > 1 { format!(" of each of {world} ranks") } else { String::new() },
        quantity(memory.total(), "B"),
        quantity(weights, "B"),
        quantity(gradients, "B"),
        quantity(moments, "B"),
        quantity(average, "B"),
        quantity(activations, "B"),
    ));
    let snapshot = quantity(snapshot_bytes(model, data), "B");
    lines.push(format!("checkpoints: {snapshot} each; at most two copies wait in host memory to be written"));
    let mut length = format!("length: {} steps of {} images, {images} images", train.steps, train.batch);
    if let Some((samples, memory)) = loader {
        length += &format!(", {:.1} epochs of {samples}", images as f64 / (samples as f64).max(1.0));
        lines.push(memory_line(memory));
    }
    lines.push(length);
    let name = match device {
        Device::Cuda(number) => format!("cuda:{number}"),
        _ => "cpu".to_owned(),
    };
    lines.push(format!("device: {name}, computing in {}", precision_name(kind)));
    lines
}

fn quantity(value: u64, unit: &str) -> String {
    real_quantity(value as f64, unit)
}

/// With four digits and a decimal prefix: `159.9 GMAC`.
fn real_quantity(value: f64, unit: &str) -> String {
    let prefixes = ["", "k", "M", "G", "T", "P", "E", "Z"];
    let thousands = if value >= 1.0 { (value.log10() / 3.0) as usize } else { 0 };
    let power = thousands.min(prefixes.len() - 1);
    let value = value / 1000f64.powi(power as i32);
    let decimals = match value {
        v if v >= 1000.0 => 0,
        v if v >= 100.0 => 1,
        v if v >= 10.0 => 2,
        _ => 3,
    };
    // What is counted in ones has no decimals.
    let decimals = if power == 0 { 0 } else { decimals };
    format!("{value:.decimals$} {}{unit}", prefixes[power])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::resolve;

    const IMAGENET: LatentShape = LatentShape { channels: 4, height: 32, width: 32, classes: 1000 };

    #[test]
    fn quantities_have_four_digits_and_a_prefix() {
        let shown = [0.0, 7.0, 999.0, 1000.0, 159_907_627_008.0, 1.9e20].map(|value| real_quantity(value, "MAC"));
        assert_eq!(shown, ["0 MAC", "7 MAC", "999 MAC", "1.000 kMAC", "159.9 GMAC", "190.0 EMAC"]);
    }

    #[test]
    fn a_run_of_the_paper_is_told_as_the_paper_and_its_lineage_count() {
        let config = resolve(Some("dupa-xl/2"), None, &[]).unwrap();
        let loader = LoadMemory {
            pool_bytes: 1_000_000,
            batch_bytes: 0,
            order_bytes: 0,
            worker_bytes: 0,
            index_bytes: 0,
            stored_bytes: 0,
        };
        let text = lines(&config, &IMAGENET, Some((1_281_167, loader)), Device::Cpu, Kind::BFloat16, 1).join("\n");
        for part in [
            "parameters: 675130768 (683262096 with the projector)",
            "forward pass of a view: 159.9 GMAC",
            "training: 1.944 TFLOP an image",
            "497.6 TFLOP a step",
            "79.9 epochs of 1281167",
            "loader memory: at most 1.0 MB",
            "length: 400000 steps of 256 images",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let sit = resolve(Some("sit-xl/2"), None, &[]).unwrap();
        let text = lines(&sit, &IMAGENET, None, Device::Cpu, Kind::Float, 1).join("\n");
        assert!(text.contains("118.6 GMAC") && text.contains("modulation of tokens 0 MAC"), "{text}");
        assert!(!text.contains("projector, for") && !text.contains("epochs"), "{text}");
    }

    /// 682,967,184 parameters that are trained: 24 bytes each in bf16, of which a checkpoint holds 16.
    #[test]
    fn memory_is_that_of_one_rank() {
        let mut config = resolve(Some("dupa-xl/2"), None, &[]).unwrap();
        let text = |config: &_, world| lines(config, &IMAGENET, None, Device::Cpu, Kind::BFloat16, world).join("\n");
        let (one, two) = (text(&config, 1), text(&config, 2));
        for part in [
            "device memory: about ",
            "weights 4.098 GB, gradients 4.098 GB, moments 5.464 GB, average 2.732 GB",
            "activations of 256 images",
        ] {
            assert!(one.contains(part), "{part} is not in\n{one}");
        }
        assert!(one.contains("checkpoints: 10.93 GB each"), "{one}");
        assert!(
            two.contains("device memory of each of 2 ranks: about ") && two.contains("activations of 128 images"),
            "{two}"
        );
        config.train.micro_batches = 2;
        assert!(text(&config, 2).contains("activations of 64 images"));
    }
}
