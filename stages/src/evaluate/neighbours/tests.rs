use super::*;
use crate::data::{ImageRef, Place};
use proptest::prelude::*;

fn image(index: usize, label: i32) -> ImageRef {
    let key = format!("{index}.png");
    ImageRef { position: index as u64, source_index: index as u32, place: Place::File(key.clone().into()), key, label }
}

/// Pictures of the classes `0..=9`, with a label and `VALUES` values each.
fn pictures(rows: impl IntoIterator<Item = (i32, Vec<u8>)>) -> Arc<Pictures> {
    let mut pictures = Pictures::none((0..10).map(|class| class.to_string()).collect());
    for (index, (label, rgb)) in rows.into_iter().enumerate() {
        let pixels = Pixels { image: image(index, label), height: SIDE, width: SIDE, rgb, flags: 0 };
        pictures.push(&pixels).unwrap();
    }
    Arc::new(pictures)
}

#[test]
fn the_hash_of_pictures_is_of_values_and_classes() {
    let of = |rows: [(i32, Vec<u8>); 2]| pictures(rows).xxh3();
    let first = of([(0, flat(3)), (1, flat(9))]);
    assert_eq!(first, of([(0, flat(3)), (1, flat(9))]));
    assert_ne!(first, of([(0, flat(3)), (1, flat(8))]));
    assert_ne!(first, of([(0, flat(3)), (2, flat(9))]));
}

fn flat(value: u8) -> Vec<u8> {
    vec![value; VALUES]
}

/// By the definition, in f64, one pair after the other.
fn naive(queries: &Pictures, among: &Pictures) -> Vec<Nearest> {
    let distance = |a: &[u8], b: &[u8]| {
        let squares = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
        (squares.sum::<f64>() / VALUES as f64).sqrt()
    };
    let of = |query: usize| {
        let mut best = Nearest { index: 0, distance: f64::INFINITY };
        for index in 0..among.len() {
            let distance = distance(queries.row(query), among.row(index));
            if distance < best.distance {
                best = Nearest { index, distance };
            }
        }
        best
    };
    (0..queries.len()).map(of).collect()
}

/// Pictures of a few prototypes of black and white noise, with some values moved by a level or two. Their lengths are
/// large and their distances tiny, so an expansion in f32 alone puts them in the wrong order; many are equal.
fn near_copies(count: usize) -> impl Strategy<Value = Vec<(i32, Vec<u8>)>> {
    let moved = proptest::collection::vec((0..VALUES, 0..3u8), 0..4);
    let picture = (0..3u64, moved).prop_map(|(prototype, moved)| {
        let value = |i: usize| if crate::splitmix::SplitMix64::output(prototype, i as u64) & 1 == 0 { 4 } else { 250 };
        let mut rgb: Vec<u8> = (0..VALUES).map(value).collect();
        moved.into_iter().for_each(|(i, by)| rgb[i] += by);
        (prototype as i32, rgb)
    });
    proptest::collection::vec(picture, 1..count)
}

/// Pictures without anything in common.
fn noise(count: usize) -> impl Strategy<Value = Vec<(i32, Vec<u8>)>> {
    proptest::collection::vec((0..10i32, proptest::collection::vec(any::<u8>(), VALUES)), 1..count)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_blocked_search_finds_what_the_definition_finds(
        (queries, among) in prop_oneof![(near_copies(12), near_copies(60)), (noise(6), noise(20))],
        block in 1..25usize,
    ) {
        let (queries, among) = (pictures(queries), pictures(among));
        let neighbourhood = Neighbourhood::of(Arc::clone(&among)).unwrap();
        let found = neighbourhood.nearest_by(&queries, 0..queries.len(), block);
        prop_assert_eq!(&found, &naive(&queries, &among));
        let half = queries.len() / 2;
        let halves = [neighbourhood.nearest(&queries, 0..half), neighbourhood.nearest(&queries, half..queries.len())];
        prop_assert_eq!(halves.concat(), found);
    }

    #[test]
    fn a_copy_is_at_distance_zero_and_the_first_of_several_is_found(among in near_copies(40), which in any::<usize>()) {
        let which = which % among.len();
        let copy = among[which].1.clone();
        let first = among.iter().position(|(_, rgb)| *rgb == copy).unwrap();
        let found = Neighbourhood::of(pictures(among)).unwrap().nearest(&pictures([(0, copy)]), 0..1);
        prop_assert_eq!(found, [Nearest { index: first, distance: 0.0 }]);
    }
}

#[test]
fn distance_is_the_root_mean_square_difference_in_levels() {
    let found = |query, among| Neighbourhood::of(pictures(among)).unwrap().nearest(&pictures([(0, query)]), 0..1)[0];
    assert_eq!(found(flat(0), vec![(0, flat(255))]), Nearest { index: 0, distance: 255.0 });
    assert_eq!(found(flat(100), vec![(0, flat(90)), (0, flat(103))]), Nearest { index: 1, distance: 3.0 });
    // A quarter of the values differ by 8: the square root of 64 / 4.
    let quarter: Vec<u8> = (0..VALUES).map(|i| if i % 4 == 0 { 18 } else { 10 }).collect();
    assert_eq!(found(quarter, vec![(0, flat(10))]), Nearest { index: 0, distance: 4.0 });
}

#[test]
fn nothing_is_found_in_an_empty_set() {
    assert!(Neighbourhood::of(pictures([])).is_none());
    assert!(Distances::of(&[]).is_none());
}

#[test]
fn accuracy_counts_neighbours_of_the_same_name_and_chance_the_share_of_the_class() {
    let queries = pictures([(1, flat(12)), (1, flat(190)), (3, flat(200))]);
    // The same names at other indices: 3 is 0 here, 1 is 1, and 7 is in the queries' set alone.
    let mut among = Pictures::none(["3", "1"].map(str::to_owned).to_vec());
    for (index, (label, value)) in [(1, 10), (0, 210), (0, 180), (0, 250)].into_iter().enumerate() {
        let image = image(index, label);
        among.push(&Pixels { image, height: SIDE, width: SIDE, rgb: flat(value), flags: 0 }).unwrap();
    }
    let nearest = Neighbourhood::of(Arc::new(among.clone())).unwrap().nearest(&queries, 0..3);
    assert_eq!(nearest.iter().map(|n| n.index).collect::<Vec<_>>(), [0, 2, 1]);
    let by_class = class_accuracy(&queries, &nearest, &among);
    let of = |hits, count| Accuracy { hits, count };
    assert_eq!(by_class, BTreeMap::from([("1".to_owned(), of(1, 2)), ("3".to_owned(), of(1, 1))]));
    let overall: Accuracy = by_class.values().copied().sum();
    assert_eq!((overall, serde_json::to_string(&of(1, 4)).unwrap()), (of(2, 3), "0.25".to_owned()));
    // A quarter of the pictures is of class 1, three quarters of class 3.
    assert!((chance(&queries, &among) - (0.25 + 0.25 + 0.75) / 3.0).abs() < 1e-12);
    assert_eq!(chance(&pictures([(7, flat(0))]), &among), 0.0);
}

#[test]
fn the_median_is_the_middle_or_the_mean_of_two() {
    let of = |distances: &[f64]| {
        let nearest: Vec<_> = distances.iter().map(|&distance| Nearest { index: 0, distance }).collect();
        Distances::of(&nearest).map(|d| (d.least, d.median))
    };
    assert_eq!(of(&[5.0]), Some((5.0, 5.0)));
    assert_eq!(of(&[9.0, 1.0, 4.0]), Some((1.0, 4.0)));
    assert_eq!(of(&[9.0, 1.0, 4.0, 6.0]), Some((1.0, 5.0)));
}

#[test]
fn what_is_no_picture_is_refused_by_name() {
    let refusal = |item| CollectPictures::of(vec!["a".to_owned()]).consume(item).unwrap_err().to_string();
    let pixels = |side: usize, label| {
        let rgb = vec![0; side * side * 3];
        Decoded::Pixels(Pixels { image: image(4, label), height: side, width: side, rgb, flags: 0 })
    };
    assert!(refusal(pixels(16, 0)).contains("4.png: 16x16"));
    assert!(refusal(pixels(SIDE, 1)).contains("class index 1, of 1"));
    let skipped = Decoded::Skipped { image: image(4, 0), reason: "damaged".to_owned() };
    assert!(refusal(skipped).contains("4.png: damaged; mend or replace the file"));
}

#[test]
fn query_blocks_cover_all_rows_once() {
    for count in [0, 1, QUERY_BLOCK, 2 * QUERY_BLOCK + 5] {
        let mut source = QueryBlocks::of(count);
        let blocks = std::iter::from_fn(|| source.next(&Stop::never()).unwrap());
        assert_eq!(blocks.flatten().collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
    }
}
