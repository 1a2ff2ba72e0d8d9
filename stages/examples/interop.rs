//! Writes networks as `pipeline export-weights` does, with inputs and what they answer, for `golden/interop.py`, which
//! loads them in PyTorch and compares: `make test-interop`.
//!
//! ```text
//! cargo run --example interop -- FOLDER
//! FOLDER/NAME.safetensors, NAME.pt        the weights
//! FOLDER/NAME-answer.safetensors          x [5, 4, 8, 8], t [5], labels [5], velocity [5, 4, 8, 8]
//! FOLDER/NAME.json                        sizes of the network
//! ```

use std::error::Error;
use std::path::PathBuf;

use stages::exchange::weights::{Form, NetworkWeights, write};
use stages::method::config::{Backbone, LatentShape, ModelConfig};
use stages::method::layout::layout;
use stages::method::network::Network;
use stages::method::parameters::{flat_len, views};
use stages::method::random::normal;
use tch::{Device, Kind, Tensor, no_grad};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("usage: interop FOLDER")?);
    std::fs::create_dir_all(&folder)?;
    let latent = LatentShape { channels: 4, height: 8, width: 8, classes: 5 };
    for (name, backbone) in [("sit", Backbone::Sit), ("ddt", Backbone::Ddt)] {
        let model = ModelConfig {
            backbone,
            depth: 3,
            encoder_depth: 2,
            hidden: 32,
            heads: 4,
            projector_hidden: 24,
            projector_out: 12,
            ..ModelConfig::demo()
        };
        let specs = layout(&model, &latent);
        // No zero anywhere: a fresh network answers 0 whatever its weights are.
        let flat = normal(&[flat_len(&specs)], Device::Cpu, 1)? * 0.15;
        let (x, t) = (normal(&[5, 4, 8, 8], Device::Cpu, 2)?, Tensor::from_slice(&[0.0f32, 0.1, 0.5, 0.77, 1.0]));
        let labels = Tensor::from_slice(&[0i64, 5, 3, 2, 4]);
        let velocity =
            no_grad(|| Network::new(&model, &latent, &views(&specs, &flat)).forward(&x, &t, &labels)).velocity;
        let answer = [("x", &x), ("t", &t), ("labels", &labels), ("velocity", &velocity)];
        Tensor::write_safetensors(&answer, folder.join(format!("{name}-answer.safetensors")))?;

        let sizes = serde_json::json!({
            "backbone": backbone, "dim": model.hidden, "depth": model.depth, "encoder_depth": model.encoder_depth,
            "heads": model.heads, "classes": latent.classes, "grid": latent.height / model.patch,
            "projector": [model.projector_hidden, model.projector_out],
        });
        std::fs::write(folder.join(format!("{name}.json")), sizes.to_string())?;
        let weights = NetworkWeights { model, latent, flat: Vec::<f32>::try_from(flat.to_kind(Kind::Float))? };
        write(&weights, Form::Safetensors, "a test", &folder.join(format!("{name}.safetensors")))?;
        write(&weights, Form::Torch, "a test", &folder.join(format!("{name}.pt")))?;
    }
    Ok(())
}
