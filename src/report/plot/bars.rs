//! *Bars* show a number for each block or sublayer.

use maud::html;

use super::{Picture, Scale, px, rulers, short};

#[derive(Debug, Clone)]
pub struct Bar {
    pub label: String,
    pub value: f64,
    /// Whether the bar is filled.
    pub on: bool,
}

/// The sensitivity of each block. The bars of the blocks in `top` are filled.
pub fn blocks(title: &str, sensitivity: &[f64], top: &[usize]) -> Picture {
    let bar = |(block, &value): (usize, &f64)| Bar {
        label: block.to_string(),
        value,
        on: top.contains(&block),
    };
    let subtitle =
        "gradient norm of the rejected responses' NLL, by transformer block; filled: top 20 %";
    bars("blocks", title, subtitle, &sensitivity.iter().enumerate().map(bar).collect::<Vec<_>>())
}

/// Bars that begin at zero.
pub fn bars(id: &str, title: &str, subtitle: &str, bars: &[Bar]) -> Picture {
    const LEFT: f64 = 56.0;
    const TOP: f64 = 8.0;
    const HEIGHT: f64 = 200.0;
    let longest =
        bars.iter().map(|b| b.label.chars().count()).max().unwrap_or(1) as f64 * 7.0 + 5.0;
    let side = (640.0 / bars.len().max(1) as f64).clamp(8.0, longest.max(56.0));
    let width = LEFT + side * bars.len() as f64 + 12.0;
    let scale = Scale::vertical(bars.iter().map(|b| b.value), true, TOP, HEIGHT);
    let every = (longest / side).ceil() as usize;
    let body = html! {
        (rulers(&scale, LEFT, width - 8.0))
        @for (index, bar) in bars.iter().enumerate() {
            @let (x, y) = (LEFT + side * index as f64, scale.at(bar.value.max(0.0)));
            @let (width, height) = (side * 0.76, TOP + HEIGHT - y);
            rect.bar.on[bar.on] x=(px(x + side * 0.12)) y=(px(y))
                width=(px(width)) height=(px(height)) {
                title { "block " (bar.label) ": " (short(bar.value)) }
            }
            @if index.is_multiple_of(every) {
                text.ink.middle x=(px(x + side / 2.0)) y=(px(TOP + HEIGHT + 17.0)) { (bar.label) }
            }
        }
        text.dim.middle x=(px(LEFT + side * bars.len() as f64 / 2.0))
            y=(px(TOP + HEIGHT + 36.0)) { "block" }
    };
    let values: Vec<String> =
        bars.iter().map(|b| format!("{}: {}", b.label, short(b.value))).collect();
    Picture {
        id: id.into(),
        title: title.into(),
        subtitle: subtitle.into(),
        about: format!("{subtitle}. By block: {}.", values.join(", ")),
        width,
        height: TOP + HEIGHT + 44.0,
        body,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_block_has_its_bar() {
        let svg = super::blocks("a", &[1.0, 3.0, 2.0], &[1]).inline().into_string();
        assert_eq!(svg.matches("<rect class=\"bar").count(), 3);
        assert_eq!(svg.matches("<rect class=\"bar on\"").count(), 1);
    }
}
