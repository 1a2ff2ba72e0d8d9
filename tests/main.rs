//! One end-to-end binary: linking libtorch once.
