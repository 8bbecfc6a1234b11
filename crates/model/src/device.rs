//! Where tensors live, chosen at run time by a text such as `cpu` or `cuda:0`.

use std::{fmt, str::FromStr};

/// A device of this build. GPU back-ends are cargo features, so that the default build stays small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Device {
    /// The processor, in pure Rust.
    #[default]
    Cpu,
    /// An NVIDIA GPU by its index.
    #[cfg(feature = "cuda")]
    Cuda(usize),
    /// An AMD GPU by its index.
    #[cfg(feature = "rocm")]
    Rocm(usize),
    /// A discrete GPU by its index, through WebGPU.
    #[cfg(feature = "wgpu")]
    Wgpu(usize),
}

impl Device {
    pub(crate) fn to_burn(self) -> burn::tensor::Device {
        match self {
            Self::Cpu => burn::tensor::Device::flex(),
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => burn::tensor::Device::cuda(index),
            #[cfg(feature = "rocm")]
            Self::Rocm(index) => burn::tensor::Device::rocm(index),
            #[cfg(feature = "wgpu")]
            Self::Wgpu(index) => burn::tensor::Device::wgpu(burn::tensor::DeviceKind::DiscreteGpu(index)),
        }
    }

    /// The forms that this build understands.
    fn supported() -> String {
        let forms = [
            Some("cpu"),
            cfg!(feature = "cuda").then_some("cuda:N"),
            cfg!(feature = "rocm").then_some("rocm:N"),
            cfg!(feature = "wgpu").then_some("wgpu:N"),
        ];
        forms.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            #[cfg(feature = "rocm")]
            Self::Rocm(index) => write!(f, "rocm:{index}"),
            #[cfg(feature = "wgpu")]
            Self::Wgpu(index) => write!(f, "wgpu:{index}"),
        }
    }
}

/// A text that names no device of this build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no device of this build; it has: {supported} (GPU back-ends are cargo features)")]
pub struct ParseDeviceError {
    found: String,
    supported: String,
}

impl FromStr for Device {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, index) = text.split_once(':').unwrap_or((text, "0"));
        let device = match (kind, index.parse::<u16>()) {
            ("cpu", _) if text == "cpu" => Some(Self::Cpu),
            #[cfg(feature = "cuda")]
            ("cuda", Ok(index)) => Some(Self::Cuda(index.into())),
            #[cfg(feature = "rocm")]
            ("rocm", Ok(index)) => Some(Self::Rocm(index.into())),
            #[cfg(feature = "wgpu")]
            ("wgpu", Ok(index)) => Some(Self::Wgpu(index.into())),
            _ => None,
        };
        device.ok_or_else(|| ParseDeviceError { found: text.chars().take(80).collect(), supported: Self::supported() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_a_device_of_this_build() {
        assert_eq!("cpu".parse::<Device>().unwrap().to_string(), "cpu");
        for wrong in ["", "cpu:0", "tpu", "cuda:x", "cuda:-1"] {
            let error = wrong.parse::<Device>().unwrap_err().to_string();
            assert!(error.contains("it has: cpu"), "{error}");
        }
    }
}
