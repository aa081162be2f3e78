//! Pictures as SVG: no fonts, no scripts, readable in dark and light.

use crate::calibration::Calibration;

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

/// A scorer's calibration: the mean stored score of the texts that it gives each tenth, against the line of agreement;
/// the disks' areas are the numbers of texts.
pub fn calibration(found: &Calibration, scorer: &str) -> String {
    const LEFT: f64 = 64.0;
    const TOP: f64 = 60.0;
    const SIDE: f64 = 320.0;
    let at = |score: f64, stored: f64| (LEFT + SIDE * score, TOP + SIDE * (1.0 - stored));
    let title = format!("{} against stored scores", escape(scorer));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 480 440\" width=\"480\" height=\"440\" role=\"img\" \
         aria-label=\"{title}\" font-family=\"sans-serif\" font-size=\"13\">\n<title>{title}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"15\" font-weight=\"bold\" fill=\"#1a1a1a\">{title}</text>\n\
         <text x=\"16\" y=\"43\" fill=\"#555555\">{} texts, Spearman {:.3}, AUC {:.3}; areas: numbers of texts</text>\n",
        found.texts, found.spearman, found.auc
    );
    for tick in 0..=5 {
        let value = f64::from(tick) / 5.0;
        let ((x, y), (_, bottom)) = (at(value, value), at(value, 0.0));
        svg += &format!(
            "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555555\">{value:.1}</text>\n\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555555\">{value:.1}</text>\n",
            LEFT + SIDE,
            LEFT - 8.0,
            y + 4.0,
            bottom + 18.0
        );
    }
    let ((x1, y1), (x2, y2)) = (at(0.0, 0.0), at(1.0, 1.0));
    svg += &format!(
        "<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" stroke=\"#33415c\" stroke-dasharray=\"4 4\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#1a1a1a\">score of {}</text>\n\
         <text x=\"18\" y=\"{3:.1}\" text-anchor=\"middle\" fill=\"#1a1a1a\" transform=\"rotate(-90 18 {3:.1})\">mean stored \
         score</text>\n",
        LEFT + SIDE / 2.0,
        TOP + SIDE + 40.0,
        escape(scorer),
        TOP + SIDE / 2.0
    );
    for bin in &found.bins {
        let Some(stored) = bin.stored else { continue };
        let (x, y) = at((bin.from + bin.to) / 2.0, stored);
        let radius = 3.0 + 22.0 * (bin.texts as f64 / found.texts as f64).sqrt();
        svg += &format!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\" fill=\"#b3361e\" fill-opacity=\"0.7\" stroke=\"#33415c\">\
             <title>{:.1} to {:.1}: {} texts, stored {stored:.2}</title></circle>\n",
            bin.from, bin.to, bin.texts
        );
    }
    svg + "</svg>\n"
}

/// The next of 1, 2, 2.5, 5 times a power of ten.
pub fn round_step(x: f64) -> f64 {
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

pub fn escape(text: &str) -> String {
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
