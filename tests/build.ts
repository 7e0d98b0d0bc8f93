/** How the native core is built for tests: cargo's arguments. */

/** The library as it is shipped. */
export const LIBRARY = ["build", "--release", "--package", "mmproxy-ffi"];

/** The one that panics when a header requests it. Nobody measures it: it need not be optimized as a whole. */
export const FAULTY_LIBRARY = [
  ...LIBRARY,
  ...["--features", "fault-injection", "--target-dir", "target/faults"],
  ...["--config", "profile.release.lto=false", "--config", "profile.release.codegen-units=16"],
];
