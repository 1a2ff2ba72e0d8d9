//! Python with NumPy, for the tests of what is written for it. `.cargo/setup-python.sh` fetches it on the first run.

use std::path::Path;
use std::process::Command;

/// What `script`, for which `path` is a variable, prints.
pub(crate) fn python(script: &str, path: &Path) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let setup = Command::new(root.join(".cargo/setup-python.sh")).output().unwrap();
    assert!(setup.status.success(), "{}", String::from_utf8_lossy(&setup.stderr));
    let python = std::env::var_os("PYTHON").unwrap_or("python3".into());
    let script = format!("import sys; packages, path = sys.argv[1:]; sys.path.insert(0, packages)\n{script}");
    let (packages, script) = (root.join(".python/site"), script.as_str());
    let output = Command::new(python).args(["-I", "-B", "-c", script]).arg(packages).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
