//! `pipeline encode` as a whole program: killed, refused, its sources and its settings.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use shards::{Dataset, Io, Scratch};

use crate::program::{images, killed_when, pipeline, random, refuse, run, start, succeed};

/// Every file of a dataset with its bytes.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

/// The raw values of one column, in the dataset's order.
fn column(data: &Path, name: &str) -> Vec<u8> {
    let dataset = Dataset::open(data, Io::Pread).unwrap();
    let (mut all, mut scratch) = (Vec::new(), Scratch::new());
    for shard in &dataset.shards {
        let column = shard.columns().iter().position(|column| column.name == name).expect("the column is there");
        for block in 0..shard.blocks() {
            let start = all.len();
            all.resize(start + shard.block_len(block) * shard.columns()[column].sample_bytes(), 0);
            shard.read_block(block, column, &mut all[start..], &mut scratch).unwrap();
        }
    }
    all
}

fn keys(data: &Path) -> Vec<(String, i32)> {
    let dataset = Dataset::open(data, Io::Pread).unwrap();
    let of = |shard: &shards::ShardReader| {
        (0..shard.len()).map(|i| (shard.key(i).unwrap().to_owned(), shard.labels()[i])).collect::<Vec<_>>()
    };
    dataset.shards.iter().flat_map(of).collect()
}

const KILLED: &str = "encode --images {} --out {} --size 32 --shard-size 64";

/// As [`fs::read_dir`] sees it: shards that are finished.
fn finished(out: &Path) -> usize {
    let names = fs::read_dir(out).map(|entries| entries.map(|e| e.unwrap().file_name().into_string().unwrap()));
    names.map_or(0, |names| names.filter(|name| name.ends_with(".lat")).count())
}

#[test]
fn killed_at_thirty_random_points_and_run_again_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), 4, 80);
    let whole = folder.path().join("whole");
    let begun = Instant::now();
    succeed(KILLED, &[&images, &whole]);
    let (expected, took) = (contents(&whole), begun.elapsed());
    assert_eq!(expected.len(), 6, "five shards of 64 and the manifest");

    let (mut kills, mut state, mut shards_left) = (0, 2026, Vec::new());
    while kills < 30 {
        let out = folder.path().join(format!("killed-{kills}"));
        // Killed again and again in one folder, until a run gets to its end.
        while kills < 30 {
            let deadline = Instant::now() + took.mul_f64(random(&mut state));
            if !killed_when(&mut start(KILLED, &[&images, &out]), || Instant::now() >= deadline) {
                break;
            }
            kills += 1;
            shards_left.push(finished(&out));
        }
        succeed(KILLED, &[&images, &out]);
        assert!(contents(&out) == expected, "after {kills} kills, which left {shards_left:?} shards");
    }
    assert!(shards_left.iter().any(|shards| (1..5).contains(shards)), "no kill fell between shards: {shards_left:?}");
}

#[test]
fn a_full_disk_is_one_clear_error_and_loses_nothing_finished() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), 2, 128);
    let (whole, out) = (folder.path().join("whole"), folder.path().join("out"));
    succeed(KILLED, &[&images, &whole]);
    fs::create_dir(&out).unwrap();
    fs::copy(whole.join("shard-00000.lat"), out.join("shard-00000.lat")).unwrap();
    let before = contents(&out);

    // What a full disk is to a process: a write that fails half way. Signal 25 is SIGXFSZ; blocks are of 512 bytes.
    let line = format!(
        "trap '' 25; ulimit -f 9; exec '{}' encode --images '{}' --out '{}' --size 32 --shard-size 64",
        env!("CARGO_BIN_EXE_pipeline"),
        images.display(),
        out.display()
    );
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let errors: Vec<_> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1 && errors[0].contains("shard-00001.lat") && errors[0].contains("too large"), "{stderr}");
    assert!(contents(&out) == before, "{:?}", contents(&out).keys());
    succeed(KILLED, &[&images, &out]);
    assert!(contents(&out) == contents(&whole));
}

#[test]
fn an_output_that_cannot_be_written_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), 1, 2);
    // Nobody can make folders here, not even root.
    refuse("encode --images {} --out /sys/kernel/latents", &[&images], "/sys/kernel/latents");
}

#[test]
fn the_bytes_do_not_depend_on_devices_or_workers() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), 2, 75);
    let encode = |name: &str, flags: &str| {
        let out = folder.path().join(name);
        succeed(&format!("{KILLED} {flags}"), &[&images, &out]);
        contents(&out)
    };
    let one = encode("one", "--devices cpu --workers 1");
    assert!(encode("three", "--devices cpu:3 --workers 3") == one);
    assert!(encode("auto", "") == one);
}

#[test]
fn a_dataset_of_another_dtype_or_batch_is_not_continued() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), 1, 3);
    let out = folder.path().join("out");
    succeed("encode --images {} --out {} --size 32 --precision bf16", &[&images, &out]);
    refuse("encode --images {} --out {} --size 32", &[&images, &out], "encoder.");
    refuse("encode --images {} --out {} --size 32 --precision bf16 --batch 4", &[&images, &out], "encoder.batch");
    let provenance = Dataset::open(&out, Io::Pread).unwrap().manifest.provenance;
    assert_eq!(provenance["encoder"]["precision"], "bf16");
}

#[test]
fn what_is_skipped_is_listed_and_much_of_it_warned_about() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), 2, 10);
    fs::write(images.join("class-0/003.jpg"), "<html>404</html>").unwrap();
    fs::write(images.join("class-1/007.jpg"), "").unwrap();
    let out = folder.path().join("out");
    refuse("encode --images {} --out {} --size 32", &[&images, &out], "class-");
    let output = run("encode --images {} --out {} --size 32 --on-error skip", &[&images, &out]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("skipped class-0/003.jpg: not a JPEG or PNG image (plain text)"), "{stderr}");
    assert!(stderr.contains("skipped class-1/007.jpg: the file is empty"), "{stderr}");
    assert!(stderr.contains("WARNING: 10.0 % of the images are missing"), "{stderr}");
    let manifest = Dataset::open(&out, Io::Pread).unwrap().manifest;
    assert_eq!((manifest.samples, manifest.skipped.len()), (18, 2));
}

#[test]
fn mirrored_images_have_columns_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), 1, 3);
    let mirrored = folder.path().join("mirrored");
    fs::create_dir_all(mirrored.join("class-0")).unwrap();
    for entry in fs::read_dir(images.join("class-0")).unwrap() {
        let path = entry.unwrap().path();
        // Lossless, and of the crop's size, so that the crop passes it through.
        let square = image::imageops::resize(&image::open(&path).unwrap(), 64, 64, image::imageops::Nearest);
        let name = path.file_stem().unwrap().to_str().unwrap();
        square.save(images.join(format!("class-0/{name}.png"))).unwrap();
        image::imageops::flip_horizontal(&square).save(mirrored.join(format!("class-0/{name}.png"))).unwrap();
        fs::remove_file(path).unwrap();
    }
    let (flipped, plain, other) = (folder.path().join("f"), folder.path().join("p"), folder.path().join("o"));
    succeed("encode --images {} --out {} --size 64 --flip --codec none", &[&images, &flipped]);
    succeed("encode --images {} --out {} --size 64", &[&images, &plain]);
    succeed("encode --images {} --out {} --size 64 --codec zstd", &[&mirrored, &other]);
    for name in ["mean", "logvar"] {
        assert!(column(&flipped, name) == column(&plain, name), "{name}");
        assert!(column(&flipped, &format!("{name}_flip")) == column(&other, name), "{name} of the mirrored");
        assert!(column(&plain, name) != column(&other, name));
    }
    let settings = "--set train.flip=true --set train.batch=2 --set train.sample_every=0";
    let train = format!("train --data {{}} --run {{}} --preset dupa-demo --steps 1 {settings}");
    succeed(&train, &[&flipped, &folder.path().join("run")]);
    let refused = folder.path().join("refused");
    refuse(&train, &[&plain, &refused], "p: the dataset has no latents of mirrored images (no column mean_flip)");
    assert!(!refused.exists());
}

/// A tar of samples, name and label each, with the members in turns image first and label first.
fn tar(path: &Path, images: &Path, samples: &[(&str, &str, i32)]) {
    let staging = path.with_extension("staging");
    fs::create_dir_all(&staging).unwrap();
    let mut names = Vec::new();
    for (i, (name, source, label)) in samples.iter().enumerate() {
        fs::copy(images.join(source), staging.join(format!("{name}.jpg"))).unwrap();
        fs::write(staging.join(format!("{name}.cls")), label.to_string()).unwrap();
        let mut members = [format!("{name}.jpg"), format!("{name}.cls")];
        if i % 2 == 1 {
            members.reverse();
        }
        names.extend(members);
    }
    let made = Command::new("tar").arg("-cf").arg(path).arg("-C").arg(&staging).args(names).status().unwrap();
    assert!(made.success());
    fs::remove_dir_all(staging).unwrap();
}

#[test]
fn tars_encode_to_the_latents_of_their_images_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), 2, 3);
    let tars = folder.path().join("tars");
    fs::create_dir(&tars).unwrap();
    tar(&tars.join("part-01.tar"), &images, &[("c", "class-0/002.jpg", 5), ("d", "class-1/000.jpg", 0)]);
    tar(&tars.join("part-00.tar"), &images, &[("b", "class-1/001.jpg", 7), ("a", "class-0/000.jpg", 1)]);
    let (by_folder, by_pattern) = (folder.path().join("by-folder"), folder.path().join("by-pattern"));
    succeed("encode --images {} --out {} --size 32", &[&tars, &by_folder]);
    succeed("encode --images {} --out {} --size 32", &[&tars.join("part-{00..01}.tar"), &by_pattern]);
    assert!(contents(&by_folder) == contents(&by_pattern));
    let expected = [("part-00/b.jpg", 7), ("part-00/a.jpg", 1), ("part-01/c.jpg", 5), ("part-01/d.jpg", 0)];
    assert_eq!(keys(&by_folder), expected.map(|(key, label)| (key.to_owned(), label)));
    assert_eq!(Dataset::open(&by_folder, Io::Pread).unwrap().manifest.classes.len(), 8);

    let names = folder.path().join("names.txt");
    fs::write(&names, "tench\ngoldfish\n").unwrap();
    let other = folder.path().join("other");
    refuse("encode --images {} --out {} --class-names {}", &[&tars, &other, &names], "label 7 is not below the 2");
    refuse("encode --images {} --out {} --renumber", &[&tars, &other], "--renumber is for class folders");
    let named = folder.path().join("named");
    succeed("encode --images {} --out {} --size 32 --class-names imagenet", &[&tars, &named]);
    assert_eq!(Dataset::open(&named, Io::Pread).unwrap().manifest.classes[1], "n01443537");
    fs::create_dir(tars.join("n01443537")).unwrap();
    refuse("encode --images {} --out {}", &[&tars, &other], "lies beside the folder");
    fs::remove_dir(tars.join("n01443537")).unwrap();

    // The same images as files, one at a time as batches would differ: the bits are the same.
    let files = folder.path().join("files");
    fs::create_dir_all(files.join("all")).unwrap();
    for (i, source) in ["class-1/001.jpg", "class-0/000.jpg", "class-0/002.jpg", "class-1/000.jpg"].iter().enumerate() {
        fs::copy(images.join(source), files.join(format!("all/{i}.jpg"))).unwrap();
    }
    let out = folder.path().join("out");
    succeed("encode --images {} --out {} --size 32 --batch 1", &[&files, &out]);
    let by_one = folder.path().join("by-one");
    succeed("encode --images {} --out {} --size 32 --batch 1", &[&tars, &by_one]);
    let (mean, of_files) = (column(&by_one, "mean"), column(&out, "mean"));
    let one = mean.len() / 4;
    for (position, (key, _)) in keys(&out).iter().enumerate() {
        let i: usize = key[4..5].parse().unwrap();
        assert!(mean[i * one..(i + 1) * one] == of_files[position * one..(position + 1) * one], "{key}");
    }
}

#[test]
fn imagenets_layouts_have_imagenets_labels() {
    let folder = tempfile::tempdir().unwrap();
    let drawn = images(folder.path(), 2, 2);
    // n01443537 is class 1 (goldfish), n15075141 the last (toilet tissue).
    let train = folder.path().join("train");
    fs::create_dir(&train).unwrap();
    fs::rename(drawn.join("class-0"), train.join("n01443537")).unwrap();
    fs::rename(drawn.join("class-1"), train.join("n15075141")).unwrap();
    let out = folder.path().join("out");
    succeed("encode --images {} --out {} --size 32", &[&train, &out]);
    let mut labels: Vec<_> = keys(&out).into_iter().map(|(_, label)| label).collect();
    labels.sort_unstable();
    assert_eq!(labels, [1, 1, 999, 999]);
    assert_eq!(Dataset::open(&out, Io::Pread).unwrap().manifest.classes[999], "n15075141");
    let renumbered = folder.path().join("renumbered");
    succeed("encode --images {} --out {} --size 32 --renumber", &[&train, &renumbered]);
    assert!(keys(&renumbered).iter().all(|(key, label)| *label == i32::from(key.starts_with("n15"))));

    let val = folder.path().join("val");
    fs::create_dir(&val).unwrap();
    for i in 1..=2 {
        let name = format!("ILSVRC2012_val_{i:08}.JPEG");
        fs::copy(train.join(format!("n01443537/00{}.jpg", i - 1)), val.join(name)).unwrap();
    }
    let truth = folder.path().join("truth.txt");
    fs::write(&truth, "n15075141\nn01440764\n").unwrap();
    let out = folder.path().join("out-val");
    succeed("encode --images {} --labels {} --out {} --size 32", &[&val, &truth, &out]);
    let mut found = keys(&out);
    found.sort();
    let expected = [("ILSVRC2012_val_00000001.JPEG", 999), ("ILSVRC2012_val_00000002.JPEG", 0)];
    assert_eq!(found, expected.map(|(key, label)| (key.to_owned(), label)));
    fs::write(&truth, "n15075141\n").unwrap();
    refuse("encode --images {} --labels {} --out {}", &[&val, &truth, &folder.path().join("no")], "truth.txt");
}

/// Serves two files the way the hub does, and counts the requests.
fn hub(files: [PathBuf; 2]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let request = lines.next().unwrap_or_default();
            let headers: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
            let file = files.iter().find(|file| request.contains(file.file_name().unwrap().to_str().unwrap()));
            let Some(bytes) = file.map(|file| fs::read(file).unwrap()) else {
                stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
                continue;
            };
            let range =
                headers.iter().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
            let (from, to) = match range.as_deref().and_then(|range| range.split_once('-')) {
                Some((from, to)) => (from.parse().unwrap(), to.parse().map_or(bytes.len(), |to: usize| to + 1)),
                None => (0, bytes.len()),
            };
            let body = &bytes[from..to.min(bytes.len())];
            let head = format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{}\r\n\
                 etag: \"{}\"\r\nx-repo-commit: 0123456789abcdef\r\nConnection: close\r\n\r\n",
                body.len(),
                from + body.len() - 1,
                bytes.len(),
                bytes.len(),
            );
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    address
}

#[test]
fn an_autoencoder_of_the_hub_is_downloaded_once_and_its_absence_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), 1, 2);
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("stages/assets/tiny-vae");
    let address = hub(["config.json", "diffusion_pytorch_model.safetensors"].map(|name| tiny.join(name)));
    let encode = |vae: &str, out: &str, endpoint: &str| {
        let mut command = pipeline();
        command.args(["encode", "--size", "32", "--vae", vae, "--images"]).arg(&images);
        command.arg("--out").arg(folder.path().join(out));
        command.env("HF_ENDPOINT", endpoint).env("HF_HOME", folder.path().join("hub")).env_remove("HF_TOKEN");
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    // A port that nobody listens on.
    let nowhere = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let (code, stderr) = encode("acme/tiny", "offline", &nowhere);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("--vae acme/tiny: no such directory, not in the cache"), "{stderr}");
    assert!(stderr.contains("pass --vae DIR"), "{stderr}");
    let (code, stderr) = encode("acme/tiny", "online", &address);
    assert_eq!(code, Some(0), "{stderr}");
    let (code, stderr) = encode("acme/tiny", "cached", &nowhere);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(contents(&folder.path().join("online")) == contents(&folder.path().join("cached")));
    let vae = &Dataset::open(folder.path().join("cached"), Io::Pread).unwrap().manifest.provenance["vae"];
    assert_eq!((&vae["name"], &vae["revision"]), (&"acme/tiny".into(), &"0123456789abcdef".into()));
}

#[test]
fn processes_encode_their_shards_and_the_last_one_completes_the_dataset() {
    let folder = tempfile::tempdir().unwrap();
    let images = images(folder.path(), 4, 80);
    let at = |name: &str| folder.path().join(name);
    succeed(KILLED, &[&images, &at("one")]);
    let expected = contents(&at("one"));
    let share = |rank: usize| format!("{KILLED} --world 3 --rank {rank}");

    let together = [0, 1, 2].map(|rank| start(&share(rank), &[&images, &at("three")]).spawn().unwrap());
    for mut process in together {
        assert!(process.wait().unwrap().success());
    }
    assert!(contents(&at("three")) == expected);

    // One after the other; the second is lost, and made by a command without a share.
    let said = succeed(&share(2), &[&images, &at("lost")]);
    assert!(said.contains("1 shard of this process, 64 images,") && said.contains("4 of other processes"), "{said}");
    succeed(&share(0), &[&images, &at("lost")]);
    assert_eq!(
        contents(&at("lost")).into_keys().collect::<Vec<_>>(),
        ["shard-00000.lat", "shard-00002.lat", "shard-00003.lat"]
    );
    succeed(KILLED, &[&images, &at("lost")]);
    assert!(contents(&at("lost")) == expected);
    // A share of a whole dataset, one of other settings, and none.
    assert!(succeed(&share(1), &[&images, &at("lost")]).contains("complete already"));
    refuse(&share(1).replace("--size 32", "--size 64"), &[&images, &at("lost")], "was written with");
    refuse(&format!("{KILLED} --world 3"), &[&images, &at("none")], "--world and --rank belong together");
}
