// What a report looks like once it is laid out: lists of what is wrong, empty where nothing is.
(() => {
  const short = (e) => `${e.tagName} ${e.getAttribute("class") || ""}: ${e.textContent.trim().slice(0, 60)}`;
  const parse = (colour) => (colour.match(/[\d.]+/g) || []).map(Number);
  const opaque = (colour) => colour.length === 3 || colour[3] === 1;
  const luminance = ([r, g, b]) => {
    const linear = (x) => ((x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  };
  const contrast = (a, b) => {
    const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length && opaque(colour)) return colour;
    }
    return parse(getComputedStyle(document.documentElement).colorScheme.includes("dark") &&
      matchMedia("(prefers-color-scheme: dark)").matches ? "rgb(18, 18, 18)" : "rgb(255, 255, 255)");
  };
  const seen = (e) => {
    const box = e.getBoundingClientRect();
    return box.width > 0 && box.height > 0 && getComputedStyle(e).visibility !== "hidden";
  };
  const ownWords = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  const scrolled = (e) => {
    for (e = e.parentElement; e && e !== document.body; e = e.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(e).overflowX)) return true;
    return false;
  };
  const inside = (box, frame) =>
    box.left >= frame.left - 1 && box.right <= frame.right + 1 &&
    box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
  const plots = [...document.querySelectorAll("svg.plot")].map((svg) => {
    const frame = svg.getBoundingClientRect();
    const marks = [...svg.querySelectorAll(".plot-mark")];
    const texts = [...svg.querySelectorAll("text")].filter(seen);
    const scale = svg.getScreenCTM().a;
    const whole = texts.filter((t) => !t.classList.contains("plot-number"));
    const boxes = whole.map((t) => t.getBoundingClientRect());
    const meet = [];
    boxes.forEach((a, i) => boxes.forEach((b, j) => {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      // Boxes of lines are higher than their letters.
      if (j > i && wide > 1 && high > 0.35 * Math.min(a.height, b.height))
        meet.push(`${whole[i].textContent} / ${whole[j].textContent}`);
    }));
    return {
      name: svg.getAttribute("aria-label"),
      width: frame.width,
      empty: marks.length === 0 && texts.length < 2,
      marks: marks.length,
      invisible: marks.filter((m) => {
        const box = m.getBoundingClientRect();
        return box.width + box.height <= 0;
      }).map(short),
      untitled: marks.filter((m) => !m.querySelector("title")?.textContent.trim()).map(short),
      outside: [...marks, ...texts].filter((m) => !inside(m.getBoundingClientRect(), frame)).map(short),
      meet,
      smallest: Math.min(...texts.map((t) => parseFloat(getComputedStyle(t).fontSize) * scale)),
      faint: texts.filter((t) => !/plot-(on|dark)/.test(t.getAttribute("class") || ""))
        .filter((t) => contrast(parse(getComputedStyle(t).fill), behind(svg)) < 4.5).map(short),
    };
  });
  const words = [...document.body.querySelectorAll("*")]
    .filter((e) => !e.closest("svg") && !["SCRIPT", "STYLE"].includes(e.tagName) && ownWords(e) && seen(e));
  return {
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    wide: document.documentElement.scrollWidth,
    paper: luminance(behind(document.body)),
    words: words.length,
    faint: words.filter((e) => contrast(parse(getComputedStyle(e).color), behind(e)) < 4.5).map(short),
    small: words.filter((e) => parseFloat(getComputedStyle(e).fontSize) < 11).map(short),
    loose: [...document.querySelectorAll("table")].filter((t) => !scrolled(t)).map(short),
    dangling: [...document.querySelectorAll('a[href^="#"]')]
      .filter((a) => a.hash.length > 1 && !document.getElementById(decodeURIComponent(a.hash.slice(1))))
      .map(short),
    fetched: [...document.querySelectorAll("[src], link[href]")].map((e) => e.src || e.href)
      .filter((url) => !url.startsWith("data:")),
    plots,
  };
})()
