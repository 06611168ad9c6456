//! Which weights cuBLASLt multiplies with: of each shape that a model has, whichever of the library
//! and our own kernels was found to be the fastest correct one on this GPU. The choice is one for
//! all numbers of rows, or a row's bits would depend on its neighbours.

use super::{Subject, is_virtual, load, open_record, store};
use crate::commands::StartupError;
use crate::config::MatmulChoice;
use kernels::KernelError;
use kernels::device::cuda::CudaDevice;
use kernels::device::cuda::cublaslt::{self, Algorithm, Algorithms};
use kernels::ops::linear::cuda as linear;
use kernels::ops::linear::cuda::layout::Format;
use kernels::ops::linear::cuda::rows;
use kernels::qualify::products::{Times, is_faster, time_shape, try_shape};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What was found out with one version of the library.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Products {
    pub library_version: usize,
    pub shapes: Vec<Product>,
}

/// What was found out about one weight shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Product {
    /// "bf16" or "f16".
    pub activation: String,
    pub out_features: usize,
    pub in_features: usize,
    /// The library's algorithms for results in the activation format and in f32, in hexadecimal;
    /// none where it may not be used.
    pub algorithms: Option<[String; 2]>,
    /// Why it may not be used.
    pub refused: Option<String>,
    /// Empty where nothing was timed.
    pub times: Vec<Time>,
    /// Whether it is taken when nothing else is asked for.
    pub is_faster: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Time {
    pub rows: usize,
    pub own_ms: f64,
    pub cublaslt_ms: f64,
}

/// Whether speed is wanted, and means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    On,
    Off,
}

/// Tells `device` how to multiply with plain weights of these shapes that get no bias. What the
/// record in `cache_dir` lacks is tried now and added to it.
///
/// Errors: the device fails.
pub fn choose(
    device: &CudaDevice,
    shapes: &[[usize; 2]],
    choice: MatmulChoice,
    cache_dir: &Path,
) -> Result<(), StartupError> {
    let must = !linear::can_multiply(device, Format::Plain);
    if shapes.is_empty() || (choice == MatmulChoice::Own && !must) {
        return Ok(());
    }
    let subject = Subject::of(device).map_err(StartupError::Device)?;
    let path = subject.path(cache_dir);
    let mut record = load(&path).filter(|record| record.subject == subject);
    let known = record.as_mut().and_then(|record| record.cublaslt.take());
    let Some(version) = cublaslt::version() else {
        say_that_it_is_gone(known.as_ref(), choice);
        return Ok(());
    };
    // Found to be wrong, which was said.
    if device.is_switched_off(linear::cublaslt(device.activation_dtype())) {
        return Ok(());
    }
    let mut products = known
        .filter(|known| known.library_version == version)
        .unwrap_or_else(|| Products { library_version: version, shapes: Vec::new() });
    let num_known = products.shapes.len();
    // What a virtual GPU is fast at means nothing, so nothing is chosen there by itself.
    let clock = if is_virtual(device) || must { Clock::Off } else { Clock::On };
    for &shape in shapes {
        let wanted = must || choice == MatmulChoice::Cublaslt || clock == Clock::On;
        if products.find(device, shape).is_none() && wanted {
            tracing::info!(?shape, "trying cuBLASLt with weights of this shape for the first time");
            products.shapes.push(examine(device, shape, clock).map_err(StartupError::Device)?);
        }
        let found = products.find(device, shape);
        let taken = found.filter(|p| must || choice == MatmulChoice::Cublaslt || p.is_faster);
        let algorithms = taken.and_then(|product| usable(device, product));
        if algorithms.is_none() && choice == MatmulChoice::Cublaslt {
            let reason = found.and_then(|p| p.refused.as_deref()).unwrap_or("said above");
            tracing::warn!(?shape, reason, "cuBLASLt is not taken for weights of this shape");
        }
        device.choose_product(shape, algorithms);
    }
    if products.shapes.len() > num_known {
        let mut record = record.unwrap_or_else(|| open_record(subject));
        record.cublaslt = Some(products);
        store(&record, &path);
    }
    Ok(())
}

/// The algorithms of a record, unless the library does not know them any more.
fn usable(device: &CudaDevice, product: &Product) -> Option<Algorithms> {
    let algorithms = product.algorithms()?;
    let shape = [product.out_features, product.in_features];
    match rows::check(device, shape, &algorithms) {
        Ok(()) => Some(algorithms),
        Err(error) => {
            tracing::warn!(?shape, %error, "the record's algorithm cannot be used");
            None
        }
    }
}

fn say_that_it_is_gone(known: Option<&Products>, choice: MatmulChoice) {
    let was_taken = known.is_some_and(|known| known.shapes.iter().any(|p| p.is_faster));
    if was_taken || choice == MatmulChoice::Cublaslt {
        tracing::warn!("there is no libcublasLt.so.13 or .12, so our own kernels multiply");
    }
}

/// Tries one shape, and times it if that is asked for.
///
/// Errors: the device fails; that the library may not be used is no error.
pub fn examine(
    device: &CudaDevice,
    shape: [usize; 2],
    clock: Clock,
) -> Result<Product, KernelError> {
    let mut product = Product {
        activation: activation_of(device),
        out_features: shape[0],
        in_features: shape[1],
        algorithms: None,
        refused: None,
        times: Vec::new(),
        is_faster: false,
    };
    match try_shape(device, shape) {
        Err(error) => {
            // A lost device says nothing about the library.
            device.synchronize()?;
            product.refused = Some(error.to_string());
        }
        Ok(tried) if tried.deviation <= 1.0 => {
            let Algorithms { to_activation, to_f32 } = tried.algorithms;
            product.algorithms = Some([to_activation, to_f32].map(Algorithm::to_hex));
            if clock == Clock::On {
                let times = time_shape(device, shape, tried.algorithms)?;
                product.is_faster = is_faster(&times);
                product.times = times.iter().map(Time::of).collect();
            }
        }
        Ok(tried) => {
            let deviation = tried.deviation;
            let reason = format!("it is {deviation:.2} of the allowed distance from the reference");
            product.refused = Some(reason);
        }
    }
    Ok(product)
}

impl Products {
    fn find(&self, device: &CudaDevice, [n, k]: [usize; 2]) -> Option<&Product> {
        let activation = activation_of(device);
        let is_it =
            |p: &&Product| p.activation == activation && [p.out_features, p.in_features] == [n, k];
        self.shapes.iter().find(is_it)
    }

    /// Adds what another record of the same library has found out about other shapes.
    pub fn keep_others(&mut self, known: Products) {
        if known.library_version == self.library_version {
            let key = |p: &Product| (p.activation.clone(), p.out_features, p.in_features);
            let own: Vec<_> = self.shapes.iter().map(key).collect();
            self.shapes.extend(known.shapes.into_iter().filter(|p| !own.contains(&key(p))));
        }
    }
}

impl Product {
    fn algorithms(&self) -> Option<Algorithms> {
        let [to_activation, to_f32] = self.algorithms.as_ref()?;
        let (to_activation, to_f32) =
            (Algorithm::from_hex(to_activation)?, Algorithm::from_hex(to_f32)?);
        Some(Algorithms { to_activation, to_f32 })
    }
}

impl Time {
    fn of(times: &Times) -> Time {
        let Times { rows, own_ms, cublaslt_ms } = *times;
        Time { rows, own_ms, cublaslt_ms }
    }
}

fn activation_of(device: &CudaDevice) -> String {
    device.activation_dtype().name().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(out_features: usize) -> Product {
        let algorithms = Some(["0".repeat(128), "f".repeat(128)]);
        let (activation, in_features, refused) = ("bf16".to_string(), 64, None);
        let times = vec![Time { rows: 1, own_ms: 2.0, cublaslt_ms: 1.5 }];
        let is_faster = true;
        Product { activation, out_features, in_features, algorithms, refused, times, is_faster }
    }

    #[test]
    fn algorithms_come_back_as_they_were_written() {
        let algorithms = product(8).algorithms().expect("they are written right");
        assert_eq!(algorithms.to_activation, Algorithm([0; 8]));
        assert_eq!(algorithms.to_f32, Algorithm([u64::MAX; 8]));
        let mut broken = product(8);
        broken.algorithms = Some(["0".into(), "x".repeat(128)]);
        assert_eq!(broken.algorithms(), None);
    }

    #[test]
    fn other_shapes_are_kept_for_the_same_library_only() {
        let products = |library_version, shapes: &[usize]| Products {
            library_version,
            shapes: shapes.iter().map(|&n| product(n)).collect(),
        };
        let mut fresh = products(130_000, &[8, 16]);
        fresh.keep_others(products(130_000, &[16, 24]));
        assert_eq!(fresh, products(130_000, &[8, 16, 24]));
        fresh.keep_others(products(120_000, &[32]));
        assert_eq!(fresh, products(130_000, &[8, 16, 24]));
    }
}
