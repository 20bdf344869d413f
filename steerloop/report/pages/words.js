// Which words of a text another one lacks, by their longest common subsequence.
"use strict";

// A word with the blanks before it; a character of scripts without blanks between words; a mark.
const WORD = /\s*(?:[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Thai}]|[\p{L}\p{M}\p{N}_'’-]+|\S)|\s+$/gu;
const SPACED = /^(?![\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Thai}])[\p{L}\p{N}]/u;
const MOST = 16e6; // pairs of words: some 50 ms and 32 MB

function wordsOf(text) {
  return text.match(WORD) || [];
}

// Pieces of both texts in order, ["same" | "del" | "ins", text]; null where that is too much work.
function differences(before, after) {
  const old = wordsOf(before), now = wordsOf(after), ids = new Map();
  const id = (word) => {
    const bare = word.trim();
    if (!ids.has(bare)) ids.set(bare, ids.size);
    return ids.get(bare);
  };
  const a = old.map(id), b = now.map(id);
  let start = 0, end = 0; // words that both have there
  const least = Math.min(a.length, b.length);
  while (start < least && a[start] === b[start]) start++;
  while (end < least - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const m = a.length - start - end, n = b.length - start - end, width = n + 1;
  if (m * n > MOST || Math.min(m, n) >= 65536) return null;
  const common = new Uint16Array((m + 1) * width); // of what begins at i and at j
  for (let i = m - 1; i >= 0; i--) {
    for (let j = n - 1; j >= 0; j--) {
      common[i * width + j] = a[start + i] === b[start + j]
        ? common[(i + 1) * width + j + 1] + 1
        : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    }
  }
  const pieces = now.slice(0, start).map((x) => ["same", x]);
  let i = 0, j = 0;
  while (i < m || j < n) {
    if (i < m && j < n && a[start + i] === b[start + j]) {
      pieces.push(["same", now[start + j++]]);
      i++;
    } else if (j === n || (i < m && common[(i + 1) * width + j] >= common[i * width + j + 1])) {
      pieces.push(["del", old[start + i++]]);
    } else {
      pieces.push(["ins", now[start + j++]]);
    }
  }
  return pieces.concat(now.slice(now.length - end).map((x) => ["same", x]));
}

// The pieces as nodes: neighbours of a kind in one element, the blanks before it outside of it. A
// first word has none before it, and gets one behind a word of the other text.
function markedWords(pieces) {
  const nodes = [];
  let last = ""; // character
  for (let i = 0; i < pieces.length;) {
    const [kind] = pieces[i];
    let text = "";
    for (; i < pieces.length && pieces[i][0] === kind; i++) text += pieces[i][1];
    if (SPACED.test(last) && SPACED.test(text)) nodes.push(" ");
    const bare = kind === "same" ? "" : text.trim(), at = text.indexOf(bare);
    if (bare) nodes.push(text.slice(0, at), make(kind, {}, bare), text.slice(at + bare.length));
    else nodes.push(text);
    last = text.slice(-1);
  }
  return nodes;
}
