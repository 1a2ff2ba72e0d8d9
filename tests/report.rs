//! Runs and evaluations side by side.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::program::{images, refuse, succeed};

const TRAIN: &str = "train --data {} --run {} --preset dupa-demo --steps 3 --set train.batch=4 --set train.log_every=1 \
                     --set train.sample_every=2 --set train.sample_steps=1 --devices cpu";

/// Every grid of the runs is in the page, as the file has it, and the page loads nothing.
fn shows_grids_and_nothing_from_elsewhere(page: &str, runs: &[&Path]) {
    let shown: Vec<Vec<u8>> = page
        .split("src=\"")
        .skip(1)
        .map(|rest| {
            let uri = rest.split('"').next().unwrap().strip_prefix("data:image/png;base64,").unwrap();
            STANDARD.decode(uri).unwrap()
        })
        .collect();
    let grids = runs.iter().flat_map(|run| [2, 3].map(|step| run.join(format!("samples/step-{step:08}.png"))));
    assert_eq!(shown, grids.map(|grid| fs::read(grid).unwrap()).collect::<Vec<_>>());
    // In the pictures' letters anything may stand by chance.
    let text: Vec<&str> =
        page.split("data:image/png;base64,").map(|part| part.split_once('"').map_or(part, |p| p.1)).collect();
    let text = text.concat();
    assert!(text.contains("<style>"), "{text}");
    for reference in ["http", "<script", "<link", "url(", "@import", "href"] {
        assert!(!text.contains(reference), "{reference}");
    }
}

#[test]
fn runs_and_evaluations_are_put_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (data, run, other) = (at("data"), at("run"), at("other"));
    succeed("encode --images {} --out {} --size 64", &[&images(folder.path(), 3, 4), &data]);
    succeed(TRAIN, &[&data, &run]);
    succeed(&format!("{TRAIN} --set optimiser.lr=1e-3"), &[&data, &other]);
    let samples = at("samples");
    succeed("sample --run {} --out {} --count 5 --steps 2 --cfg 1,1.5,2", &[&run, &samples]);
    let records: Vec<PathBuf> = ["1", "1.5", "2"]
        .into_iter()
        .map(|cfg| {
            let (folder, record) = (samples.join(format!("cfg-{cfg}")), at(&format!("{cfg}.json")));
            let evaluate = "evaluate --samples {} --reference {} --features vae --record {} --devices cpu";
            succeed(evaluate, &[&folder, &samples.join("cfg-1"), &record]);
            record
        })
        .collect();

    let page = at("report.html");
    let [a, b, c] = [0, 1, 2].map(|i| records[i].as_path());
    let said = succeed("report {} {} {} {} {} --out {}", &[&run, &other, a, b, c, &page]);
    let rows: Vec<_> = said.lines().filter(|line| line.starts_with("| ")).collect();
    assert!(rows[0].ends_with("| optimiser.lr |") && rows[1].ends_with("| 0.002 |"), "{said}");
    assert!(rows[2].starts_with("| B |") && rows[2].ends_with("| 0.001 |"), "{said}");
    assert!(rows[3].ends_with("| latent Frechet | samples | reference pictures | sampling.settings.guidance.scale |"));
    assert!(rows[6].ends_with("| 5 | 5 | 2.0 |") && rows.len() == 7, "{said}");
    let page = fs::read_to_string(page).unwrap();
    // Velocity, cosine and the distance; and of each run loss, cosines, rank, speed and waits.
    assert_eq!(page.matches("<svg class=\"chart\"").count(), 3 + 2 * 5);
    for name in ["A, ", "B, "] {
        assert!(page.contains(&format!("<h2>{name}")), "{name}");
    }
    shows_grids_and_nothing_from_elsewhere(&page, &[&run, &other]);

    // The run itself has left a page of its own.
    let own = fs::read_to_string(run.join("report.html")).unwrap();
    assert_eq!(own.matches("<svg class=\"chart\"").count(), 5);
    assert!(own.contains("<h2>Samples on the way") && !own.contains("<h2>A, "), "{own}");
    shows_grids_and_nothing_from_elsewhere(&own, &[&run]);
    // One that was killed within a line of its metrics is shown as far as it got.
    let metrics = run.join("metrics.jsonl");
    let text = fs::read_to_string(&metrics).unwrap();
    fs::write(&metrics, &text[..text.len() - 9]).unwrap();
    let said = succeed("report {}", &[&run]);
    assert!(said.lines().any(|line| line.starts_with("| A |") && line.contains("| 2 | 8 |")), "{said}");

    refuse("report {} --by nothing", &[a], "no evaluation has a number of that name");
    refuse("report {}", &[Path::new("none.json")], "cannot read none.json");
    refuse("report {}", &[&data], "holds no run");
    fs::write(at("empty.json"), "{}").unwrap();
    refuse("report {}", &[&at("empty.json")], "holds no figure of an evaluation");
}
