use super::*;

/// `PROTO 2`, the given opcodes, `STOP`.
fn run(opcodes: &[&[u8]]) -> Result<String, PickleFault> {
    let bytes = [&[0x80, 2], opcodes.concat().as_slice(), b"."].concat();
    Pickle::read(&bytes).map(|pickle| format!("{:?}", pickle.root())).map_err(|error| error.fault)
}

const STORAGE: &[u8] = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ";
const REBUILD: &[u8] = b"ctorch._utils\n_rebuild_tensor_v2\n";

#[test]
fn a_tensor_is_a_view_of_a_storage() {
    let bytes = [b"\x80\x02", REBUILD, b"(", STORAGE, b"K\x01K\x02K\x02\x86K\x02K\x01\x86\x89)tR."].concat();
    let storage = Storage { class: "FloatStorage", key: "0", len: 6 };
    let expected = Tensor { storage, offset: 1, shape: vec![2, 2], strides: vec![2, 1] };
    assert_eq!(Pickle::read(&bytes).unwrap().root(), &Value::Tensor(expected));
}

#[test]
fn every_width_of_integer_and_text_is_read() {
    for (opcodes, expected) in [
        (&b"K\xff"[..], "Int(255)"),
        (b"M\x01\x02", "Int(513)"),
        (b"J\xfe\xff\xff\xff", "Int(-2)"),
        (b"\x8a\x00", "Int(0)"),
        (b"\x8a\x02\x00\x80", "Int(-32768)"),
        (b"\x8b\x03\x00\x00\x00\x01\x00\x01", "Int(65537)"),
        (b"\x8a\x09\0\0\0\0\0\0\0\0\x01", "Opaque"),
        (b"X\x02\0\0\0ab", "Text(\"ab\")"),
        (b"\x8c\x01a", "Text(\"a\")"),
        (b"\x8d\x01\0\0\0\0\0\0\0a", "Text(\"a\")"),
        (b"B\x01\0\0\0a", "Opaque"),
        (b"C\x01a", "Opaque"),
        (b"\x8e\x01\0\0\0\0\0\0\0a", "Opaque"),
        (b"\x96\x01\0\0\0\0\0\0\0a", "Opaque"),
        (b"G01234567", "Opaque"),
        (b"\x95\0\0\0\0\0\0\0\0N", "Opaque"),
    ] {
        assert_eq!(run(&[opcodes]).unwrap(), expected, "{opcodes:?}");
    }
}

#[test]
fn nothing_but_known_names_is_called() {
    for call in [
        &b"cos\nsystem\nX\x04\0\0\0echo\x85R"[..],
        b"X\x05\0\0\0posixX\x06\0\0\0system\x93X\x04\0\0\0echo\x85R",
        b"cargparse\nNamespace\n)\x81}X\x01\0\0\0aK\x01sb",
        b"cbuiltins\nset\n]\x85R",
        b"]K\x01a(K\x02K\x03e",
        b"\x8f(K\x01\x90",
        b"(K\x01\x91",
        b"ccollections\nOrderedDict\n]\x85R",
    ] {
        assert_eq!(run(&[call]).unwrap(), "Opaque", "{}", call.escape_ascii());
    }
    assert_eq!(run(&[b"ccollections\nOrderedDict\n)RX\x01\0\0\0aK\x01s}b"]).unwrap(), "Dict([(3, 4)])");
}

#[test]
fn the_memo_gives_back_what_was_stored() {
    assert_eq!(run(&[b"K\x07q\x05K\x08h\x05"]).unwrap(), "Int(7)");
    assert_eq!(run(&[b"K\x07r\x00\x00\x01\x00K\x08j\x00\x00\x01\x00"]).unwrap(), "Int(7)");
    assert_eq!(run(&[b"K\x07\x94K\x08\x94h\x00"]).unwrap(), "Int(7)");
    assert_eq!(run(&[b"h\x01"]), Err(PickleFault::Memo(1)));
    // A dictionary that holds itself.
    assert_eq!(run(&[b"}q\0X\x01\0\0\0ah\0s"]).unwrap(), "Dict([(1, 0)])");
}

#[test]
fn every_way_to_be_wrong_has_its_error() {
    let tensor = |arguments: &[u8]| [REBUILD, b"(", arguments, b"tR"].concat();
    for (opcodes, fault) in [
        (b"\x80\x06N".to_vec(), PickleFault::Protocol(6)),
        (b"I1\n".to_vec(), PickleFault::Opcode(b'I')),
        (b"\x97".to_vec(), PickleFault::Opcode(0x97)),
        (b"".to_vec(), PickleFault::EmptyStack),
        (b"0".to_vec(), PickleFault::EmptyStack),
        (b"K\x01(".to_vec(), PickleFault::EmptyStack),
        (b"K\x01(0".to_vec(), PickleFault::EmptyStack),
        (b"K\x01\x86".to_vec(), PickleFault::EmptyStack),
        (b"t".to_vec(), PickleFault::NoMark),
        (b"X\x01\0\0\0\xff".to_vec(), PickleFault::Text),
        (b"c\xff\nx\n".to_vec(), PickleFault::Text),
        (b"}(K\x01u".to_vec(), PickleFault::Expected("a value for every key")),
        (b"K\x01K\x02K\x03s".to_vec(), PickleFault::Expected("a dictionary")),
        (b"K\x01K\x02a".to_vec(), PickleFault::Expected("a list")),
        (b"K\x01K\x02\x93".to_vec(), PickleFault::Expected("the name of a class")),
        (b"K\x01Q".to_vec(), PickleFault::Expected("a storage")),
        (b"K\x01)R".to_vec(), PickleFault::Expected("something to call")),
        (b"ca\nb\nNR".to_vec(), PickleFault::Expected("a tuple of arguments")),
        (tensor(b""), PickleFault::Expected("storage, offset, shape and strides of a tensor")),
        (tensor(b"NK\0))"), PickleFault::Expected("a storage")),
        (tensor(&[STORAGE, b"N))"].concat()), PickleFault::Expected("a size")),
        (tensor(&[STORAGE, b"K\0N)"].concat()), PickleFault::Expected("a tuple of sizes")),
        (tensor(&[STORAGE, b"K\0K\x01\x85)"].concat()), PickleFault::Expected("a stride for each dimension")),
        (
            tensor(&[STORAGE, b"K\0J\xff\xff\xff\xff\x85K\x01\x85"].concat()),
            PickleFault::Expected("a size of at least 0"),
        ),
        (
            tensor(&[STORAGE, b"K\0(K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01K\x01t)"].concat()),
            PickleFault::Dimensions(9),
        ),
        (b"ctorch._utils\n_rebuild_parameter\nN\x85R".to_vec(), PickleFault::Expected("a tensor")),
    ] {
        assert_eq!(run(&[&opcodes]), Err(fault), "{}", opcodes.escape_ascii());
    }
}

#[test]
fn a_pickle_that_is_cut_anywhere_ends_too_early() {
    let whole = [b"\x80\x02}X\x01\0\0\0a", REBUILD, b"(", STORAGE, b"K\0K\x06\x85K\x01\x85\x89)tRs."].concat();
    assert!(Pickle::read(&whole).is_ok());
    for len in 0..whole.len() {
        assert_eq!(Pickle::read(&whole[..len]).unwrap_err().fault, PickleFault::Truncated, "{len}");
    }
}

#[test]
fn lengths_that_are_stated_are_not_allocated() {
    for opcodes in [&b"X\xff\xff\xff\xffa"[..], b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa", b"\x8b\xff\xff\xff\xffa"] {
        assert_eq!(run(&[opcodes]), Err(PickleFault::Truncated));
    }
}

#[test]
fn nesting_costs_nothing_and_the_number_of_values_is_bounded() {
    let deep = 500_000;
    assert_eq!(run(&[&b"}K\x01".repeat(deep), b"N", &b"s".repeat(deep)]).unwrap().len(), "Dict([(1, 2)])".len());
    assert_eq!(run(&[&b"N".repeat(MAX_VALUES + 1)]), Err(PickleFault::TooManyValues));
    assert_eq!(run(&[&b"N".repeat(MAX_VALUES)]).unwrap(), "Opaque");
    // Each tuple holds the one before it twice: 2^1000 leaves, which nobody counts.
    assert!(run(&[b"K\x01", &b"2\x86".repeat(1000)]).is_ok());
}
