//! The names that tensors of this autoencoder have in the wild, and what they are called here.
//!
//! Three namings exist: diffusers today, diffusers before 0.18 (other names in the attention), and the original latent
//! diffusion code (LDM), whose decoder counts its levels from the finest. Each tensor is renamed on its own, so files
//! that mix them are read too.

/// What LDM checkpoints put before every name of the autoencoder.
pub(super) const LDM_PREFIX: &str = "first_stage_model.";

/// The name of today's diffusers for `name`, in an autoencoder of `blocks` resolutions. `None` for tensors that LDM
/// stores beside the network: its discriminator and the running average of its training.
pub(super) fn current(name: &str, blocks: usize) -> Option<String> {
    if name.starts_with("loss.") || name.starts_with("model_ema.") {
        return None;
    }
    let parts: Vec<&str> = name.split('.').collect();
    Some(match parts.as_slice() {
        [half, "mid_block", "attentions", index, layer, rest @ ..] => {
            join(&[half, "mid_block", "attentions", index, attention(layer)], rest)
        }
        [half, "mid", "attn_1", layer, rest @ ..] => join(&[half, "mid_block.attentions.0", attention(layer)], rest),
        [half, "mid", "block_1", layer, rest @ ..] => join(&[half, "mid_block.resnets.0", resnet(layer)], rest),
        [half, "mid", "block_2", layer, rest @ ..] => join(&[half, "mid_block.resnets.1", resnet(layer)], rest),
        ["encoder", "down", level, "block", index, layer, rest @ ..] => {
            join(&["encoder.down_blocks", level, "resnets", index, resnet(layer)], rest)
        }
        ["encoder", "down", level, "downsample", rest @ ..] => {
            join(&["encoder.down_blocks", level, "downsamplers.0"], rest)
        }
        ["decoder", "up", level, "block", index, layer, rest @ ..] => {
            join(&["decoder.up_blocks", &mirrored(level, blocks), "resnets", index, resnet(layer)], rest)
        }
        ["decoder", "up", level, "upsample", rest @ ..] => {
            join(&["decoder.up_blocks", &mirrored(level, blocks), "upsamplers.0"], rest)
        }
        [half @ ("encoder" | "decoder"), "norm_out", rest @ ..] => join(&[half, "conv_norm_out"], rest),
        _ => name.to_owned(),
    })
}

fn join(head: &[&str], rest: &[&str]) -> String {
    [head, rest].concat().join(".")
}

fn attention(layer: &str) -> &str {
    match layer {
        "query" | "q" => "to_q",
        "key" | "k" => "to_k",
        "value" | "v" => "to_v",
        "proj_attn" | "proj_out" => "to_out.0",
        "norm" => "group_norm",
        other => other,
    }
}

fn resnet(layer: &str) -> &str {
    if layer == "nin_shortcut" { "conv_shortcut" } else { layer }
}

/// LDM counts the levels of its decoder from the finest, diffusers from the coarsest. What is no level stays as it is,
/// to be reported as unexpected.
fn mirrored(level: &str, blocks: usize) -> String {
    match level.parse::<usize>() {
        Ok(level) if level < blocks => (blocks - 1 - level).to_string(),
        _ => level.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_naming_becomes_that_of_today() {
        for (old, new) in [
            ("encoder.mid_block.attentions.0.query.weight", "encoder.mid_block.attentions.0.to_q.weight"),
            ("decoder.mid_block.attentions.0.proj_attn.bias", "decoder.mid_block.attentions.0.to_out.0.bias"),
            ("decoder.mid_block.attentions.0.to_out.0.bias", "decoder.mid_block.attentions.0.to_out.0.bias"),
            ("encoder.mid_block.attentions.0.group_norm.bias", "encoder.mid_block.attentions.0.group_norm.bias"),
            ("encoder.mid.attn_1.norm.weight", "encoder.mid_block.attentions.0.group_norm.weight"),
            ("encoder.mid.attn_1.proj_out.weight", "encoder.mid_block.attentions.0.to_out.0.weight"),
            ("decoder.mid.block_2.conv1.bias", "decoder.mid_block.resnets.1.conv1.bias"),
            ("encoder.down.1.block.0.nin_shortcut.weight", "encoder.down_blocks.1.resnets.0.conv_shortcut.weight"),
            ("encoder.down.2.downsample.conv.weight", "encoder.down_blocks.2.downsamplers.0.conv.weight"),
            ("decoder.up.3.block.2.norm1.weight", "decoder.up_blocks.0.resnets.2.norm1.weight"),
            ("decoder.up.1.upsample.conv.bias", "decoder.up_blocks.2.upsamplers.0.conv.bias"),
            ("decoder.norm_out.bias", "decoder.conv_norm_out.bias"),
            ("decoder.up.9.upsample.conv.bias", "decoder.up_blocks.9.upsamplers.0.conv.bias"),
            ("quant_conv.weight", "quant_conv.weight"),
        ] {
            assert_eq!(current(old, 4).as_deref(), Some(new));
        }
        assert_eq!(current("loss.discriminator.main.0.weight", 4), None);
        assert_eq!(current("model_ema.decay", 4), None);
    }
}
