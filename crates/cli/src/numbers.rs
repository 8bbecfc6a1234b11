//! Numbers on the command line. Whatever is wrong with one, the message says which numbers are accepted.

use std::ops::RangeInclusive;

/// Parses a whole number of a range.
pub(crate) fn whole<T>(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: TryFrom<u64>,
{
    move |text| {
        let (min, max) = (*range.start(), *range.end());
        let number = text.parse::<u64>().ok().filter(|number| range.contains(number));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| {
            if max == u64::MAX {
                format!("it must be a whole number, {min} or more")
            } else {
                format!("it must be a whole number from {min} to {max}")
            }
        })
    }
}

/// Parses a number of a range.
pub(crate) fn real(range: RangeInclusive<f64>) -> impl Fn(&str) -> Result<f64, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.parse::<f64>().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("it must be a number from {} to {}", range.start(), range.end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_wrong_the_range_is_told() {
        assert_eq!(whole::<u16>(1..=256)("256"), Ok(256));
        for wrong in ["-1", "0", "257", "1.5", "many", "", "99999999999999999999"] {
            assert_eq!(whole::<u16>(1..=256)(wrong).unwrap_err(), "it must be a whole number from 1 to 256", "{wrong}");
        }
        assert_eq!(whole::<u64>(1..=u64::MAX)("0").unwrap_err(), "it must be a whole number, 1 or more");
        assert_eq!(real(0.5..=2.0)("0.5"), Ok(0.5));
        for wrong in ["-1", "0.4", "2.1", "nan", "inf", "many"] {
            assert_eq!(real(0.5..=2.0)(wrong).unwrap_err(), "it must be a number from 0.5 to 2", "{wrong}");
        }
    }
}
