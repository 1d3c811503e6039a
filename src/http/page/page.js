'use strict';
(() => {
const root = document.documentElement, zone = root.dataset.zone, currency = root.dataset.currency;
const all = (what, where = document) => [...where.querySelectorAll(what)];
const decimals = (value, digits) => new Intl.NumberFormat(undefined, {minimumFractionDigits: digits, maximumFractionDigits: digits}).format(value);
const watts = mw => decimals(mw / 1e3, mw < 1e4 ? 2 : mw < 1e5 ? 1 : 0) + ' W';
const kwh = mwh => decimals(mwh / 1e6, mwh < 1e7 ? 3 : mwh < 1e8 ? 2 : 1) + ' kWh';
const money = cost => new Intl.NumberFormat(undefined, {style: 'currency', currency}).format(cost);
const when = (ms, how) => new Intl.DateTimeFormat(undefined, {timeZone: zone, ...how}).format(ms);
const clock = {hour: '2-digit', minute: '2-digit'}, date = {day: 'numeric', month: 'short'}, weekday = {weekday: 'short', day: 'numeric'};
const number = new Intl.NumberFormat();
const marks = {h: clock, d: {weekday: 'short'}, m: date, y: {month: 'short'}};
const isToday = ms => when(ms, {dateStyle: 'short'}) === when(Date.now(), {dateStyle: 'short'});

function localise() {
  for (const e of all('[data-mw]')) e.textContent = watts(+e.dataset.mw);
  for (const e of all('[data-mwh]')) e.textContent = kwh(+e.dataset.mwh);
  if (currency) for (const e of all('[data-cost]')) e.textContent = money(+e.dataset.cost);
  for (const e of all('time[data-at]')) e.textContent = when(+e.dataset.at, isToday(+e.dataset.at) ? clock : {...date, ...clock});
  for (const e of all('text[data-t]')) e.textContent = when(+e.dataset.t, marks[e.dataset.s]);
  for (const e of all('text[data-n]')) e.textContent = number.format(+e.dataset.n);
  show();
  all('svg.chart').forEach(values);
}

/* The newest power of each device, in mW; null for what is not live. */
let live = new Map();
function read() {
  live = new Map();
  for (const e of all('[data-of]')) for (const part of e.dataset.of.split(' ')) {
    const [id, mw] = part.split('=');
    live.set(id, mw ? +mw : null);
  }
}
function show() {
  for (const e of all('[data-of]')) {
    const known = e.dataset.of.split(' ').map(part => live.get(part.split('=')[0])).filter(mw => mw !== null);
    e.textContent = known.length ? watts(known.reduce((a, b) => a + b, 0)) : '\u2013';
  }
  const total = document.getElementById('total');
  if (total) total.textContent = watts([...live.values()].reduce((a, b) => a + (b || 0), 0));
}

/* Values under the pointer, or by arrow keys. */
function values(svg) {
  const rows = JSON.parse(svg.dataset.v || '[]'), figure = svg.parentElement, line = svg.querySelector('.h');
  if (!rows.length || !line || svg.tabIndex === 0) return;
  const tip = document.createElement('output');
  tip.className = 'tip';
  figure.append(tip);
  const from = +svg.dataset.from, to = +svg.dataset.to, box = svg.viewBox.baseVal, left = 50, width = box.width - 58;
  const power = svg.classList.contains('power');
  for (const title of all('rect title', svg)) title.remove();
  let at = -1;
  const select = n => {
    at = Math.max(0, Math.min(rows.length - 1, n));
    const [start, end, value, a, b] = rows[at];
    const long = end - start > 1.7e9, day = end - start > 7.2e7;
    const name = long ? when((start + end) / 2, {month: 'long', year: 'numeric'}) : day ? when((start + end) / 2, {...weekday, month: 'short'})
      : when(start, {...weekday, month: 'short', ...clock});
    tip.textContent = power ? name + ': ' + watts(value) + (b === undefined ? '' : ' (' + watts(a) + ' to ' + watts(b) + ')')
      : name + ': ' + kwh(value) + (a === undefined || !currency ? '' : ', ' + money(a));
    const x = left + ((start + end) / 2 - from) / (to - from) * width;
    line.setAttribute('transform', 'translate(' + x.toFixed(1) + ')');
    line.classList.add('on');
  };
  const leave = () => { at = -1; tip.textContent = ''; line.classList.remove('on'); };
  const point = event => {
    const place = svg.getBoundingClientRect();
    const time = from + ((event.clientX - place.left) / place.width * box.width - left) / width * (to - from);
    let best = 0;
    rows.forEach((row, n) => { if (Math.abs((row[0] + row[1]) / 2 - time) < Math.abs((rows[best][0] + rows[best][1]) / 2 - time)) best = n; });
    const row = rows[best], wide = row[1] - row[0];
    if (time < row[0] - wide || time > row[1] + wide) leave(); else select(best);
  };
  svg.tabIndex = 0;
  svg.addEventListener('pointermove', point);
  svg.addEventListener('pointerdown', point);
  svg.addEventListener('pointerleave', event => { if (event.pointerType === 'mouse') leave(); });
  svg.addEventListener('blur', leave);
  svg.addEventListener('keydown', event => {
    const step = {ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9}[event.key];
    if (!step) return;
    event.preventDefault();
    select(at < 0 ? rows.length - 1 : at + step);
  });
}

/* Another plug or range: the same page as without a script, its main part put in place. */
let turn = 0;
async function go(href, push) {
  const mine = ++turn;
  try {
    const answer = await fetch(href, {headers: {accept: 'text/html'}});
    if (!answer.ok) throw new Error(answer.status);
    const next = new DOMParser().parseFromString(await answer.text(), 'text/html');
    if (mine !== turn) return;
    const focused = document.activeElement && document.activeElement.getAttribute('href'), kept = scrollY;
    document.querySelector('main').replaceWith(document.adoptNode(next.querySelector('main')));
    document.title = next.title;
    const other = new URL(href, location).pathname !== location.pathname;
    if (push) history.pushState(null, '', href);
    read();
    localise();
    const again = focused && all('main a').find(a => a.getAttribute('href') === focused);
    if (push && other) { scrollTo(0, 0); document.querySelector('main').focus(); } else {
      if (again) again.focus({preventScroll: true});
      scrollTo(0, kept);
    }
    loaded = Date.now();
  } catch (error) {
    if (push) location.href = href;
  }
}
addEventListener('click', event => {
  const link = event.target.closest && event.target.closest('a[data-nav]');
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  go(link.getAttribute('href'), true);
});
addEventListener('popstate', () => go(location.pathname + location.search, false));

/* Charts and days as they are now, but not while somebody reads values. */
let loaded = Date.now(), waiting = 0;
function refresh(after) {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    if (document.hidden || document.querySelector('.tip:not(:empty)')) refresh(5e3); else go(location.pathname + location.search, false);
  }, after);
}
setInterval(() => { if (!document.hidden && Date.now() - loaded > 6e4) refresh(0); }, 5e3);
document.addEventListener('visibilitychange', () => { if (!document.hidden && Date.now() - loaded > 3e4) refresh(0); });

function listen() {
  const state = document.getElementById('state'), source = new EventSource('/api/v1/events');
  source.addEventListener('reading', event => {
    let fresh = false;
    for (const reading of JSON.parse(event.data).readings) {
      if (live.has(reading.device)) live.set(reading.device, Math.round(reading.power_w * 1e3)); else fresh = true;
    }
    show();
    if (fresh && !all('main h1 bdi').length) refresh(1e3);
  });
  source.addEventListener('device', event => {
    const news = JSON.parse(event.data), plug = news.device, card = document.querySelector('[data-plug="' + CSS.escape(plug) + '"]');
    const shown = card && (card.classList.contains('off') ? false : card.classList.contains('unknown') ? null : true);
    if (card ? shown === news.online : document.querySelector('main h1 bdi')) return;
    if (news.online === false) {
      for (const id of live.keys()) if (id === plug || id.startsWith(plug + '.')) live.set(id, null);
      if (card) card.classList.add('off');
      show();
    }
    refresh(300);
  });
  source.addEventListener('reset', () => refresh(300));
  source.addEventListener('open', () => { state.textContent = ''; });
  source.addEventListener('error', () => {
    state.textContent = 'No connection; trying again.';
    if (source.readyState === 2) setTimeout(listen, 1e4);
  });
}
read();
localise();
listen();
})();
