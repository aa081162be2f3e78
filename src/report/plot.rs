//! Pictures as SVG: no fonts, no scripts, readable in dark and light.

/// Sensitivity by block: a bar a block, the most sensitive fifth filled, the others hatched by outline only, so that the
/// picture reads without colour.
pub fn blocks_svg(title: &str, sensitivity: &[f64], top: &[usize]) -> String {
    const LEFT: f64 = 64.0;
    const TOP: f64 = 56.0;
    const HEIGHT: f64 = 220.0;
    let n = sensitivity.len().max(1);
    let bar = (640.0 / n as f64).clamp(6.0, 84.0);
    let width = LEFT + bar * n as f64 + 24.0;
    let width = width.max(600.0);
    let height = TOP + HEIGHT + 56.0;
    let largest = sensitivity.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"{0}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <title>{0}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"15\" font-weight=\"bold\" fill=\"#1a1a1a\">{0}</text>\n\
         <text x=\"16\" y=\"43\" fill=\"#555555\">gradient norm of the rejected responses' NLL, by transformer block; \
         filled: top 20 %</text>\n",
        escape(title)
    );
    let step = round_step(largest / 4.0);
    let ticks = (largest / step).ceil().max(1.0);
    let top_value = step * ticks;
    for tick in 0..=ticks as u32 {
        let value = step * f64::from(tick);
        let y = TOP + HEIGHT * (1.0 - value / top_value);
        svg += &format!(
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555555\">{}</text>\n",
            width - 16.0,
            LEFT - 8.0,
            y + 4.0,
            short(value)
        );
    }
    let label_every = (18.0 / bar).ceil().max(1.0) as usize;
    for (block, &s) in sensitivity.iter().enumerate() {
        let h = HEIGHT * (s / top_value).max(0.0);
        let x = LEFT + bar * block as f64;
        let fill = if top.contains(&block) { "#b3361e" } else { "#c9d3e0" };
        svg += &format!(
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{h:.1}\" fill=\"{fill}\" stroke=\"#33415c\">\
             <title>block {block}: {}</title></rect>\n",
            x + bar * 0.12,
            TOP + HEIGHT - h,
            bar * 0.76,
            short(s)
        );
        if block % label_every == 0 {
            svg += &format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#1a1a1a\">{block}</text>\n",
                x + bar / 2.0,
                TOP + HEIGHT + 18.0
            );
        }
    }
    svg += &format!(
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555555\">block</text>\n</svg>\n",
        LEFT + bar * n as f64 / 2.0,
        TOP + HEIGHT + 40.0
    );
    svg
}

/// The next of 1, 2, 2.5, 5 times a power of ten.
fn round_step(x: f64) -> f64 {
    let power = 10f64.powf(x.log10().floor());
    [1.0, 2.0, 2.5, 5.0].map(|m| m * power).into_iter().find(|s| *s >= x).unwrap_or(10.0 * power)
}

/// Three significant digits.
pub fn short(x: f64) -> String {
    if x == 0.0 {
        return "0".into();
    }
    let digits = (2 - x.abs().log10().floor() as i32).clamp(0, 8) as usize;
    if x.abs() >= 1e5 || x.abs() < 1e-4 { format!("{x:.2e}") } else { format!("{x:.digits$}") }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_block_has_its_bar() {
        let svg = super::blocks_svg("a <b>", &[1.0, 3.0, 2.0], &[1]);
        assert_eq!(svg.matches("<rect x=").count(), 3);
        assert_eq!(svg.matches("#b3361e").count(), 1);
        assert!(svg.contains("a &lt;b&gt;") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn three_digits() {
        assert_eq!(
            ["0", "12.3", "0.00123", "1.23e7"],
            [0.0, 12.34, 0.001234, 1.234e7].map(super::short).each_ref().map(|s| s.as_str())
        );
    }
}
