// Typical work of an application with node-postgres. Arguments: port, number of clients.

import assert from 'node:assert/strict'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'

import pg from 'pg'
import { from as copyFrom, to as copyTo } from 'pg-copy-streams'
import Cursor from 'pg-cursor'

const [port, clients] = process.argv.slice(2).map(Number)
const where = { host: '127.0.0.1', port, user: 'app', password: 'app-secret', database: 'p0' }
const one = async (client, ...query) => Object.values((await client.query(...query)).rows[0])[0]
const fails = (promise, code) => assert.rejects(promise, { code })

async function types(client) {
  const sent = [1, '9007199254740993', 1.5, 'ä\u{1F418}', true, null, Buffer.from([0, 255]), new Date(1e12), { a: [1] }, [1, 2], ['x', null]]
  const casts = ['int4', 'int8', 'float8', 'text', 'bool', 'text', 'bytea', 'timestamptz', 'jsonb', 'int4[]', 'text[]']
  const list = casts.map((cast, n) => `$${n + 1}::${cast} AS c${n}`)
  const { rows } = await client.query(`SELECT ${list}`, sent)
  assert.deepEqual(Object.values(rows[0]), sent)
}

async function statements(client, number) {
  for (let turn = 0; turn < 8; turn++) {
    // every client calls its own statement by the same name
    const named = { name: 'mine', text: `SELECT ${number} * 1000 + $1::int`, values: [turn] }
    assert.equal(await one(client, named), number * 1000 + turn)
    assert.equal(await one(client, 'SELECT $1::text', [`${number}`]), `${number}`)
  }
  const several = await client.query('SELECT 1 AS n; SELECT 2 AS n')
  assert.deepEqual(several.map(({ rows }) => rows[0].n), [1, 2])
}

async function transactions(client, number) {
  await client.query('BEGIN')
  await client.query('INSERT INTO driver_work VALUES ($1, 1000, $2)', [number, 'stays for a moment'])
  await client.query('SAVEPOINT before')
  await fails(client.query('INSERT INTO driver_work VALUES ($1, 1000, $2)', [number, 'twice']), '23505')
  await fails(client.query('SELECT 1'), '25P02')
  await client.query('ROLLBACK TO before')
  assert.equal(await one(client, 'SELECT count(*)::int FROM driver_work WHERE client = $1 AND n = 1000', [number]), 1)
  await client.query('ROLLBACK')
  await client.query('BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY')
  await fails(client.query('DELETE FROM driver_work'), '25006')
  await client.query('ROLLBACK')
  assert.equal(await one(client, 'SELECT count(*)::int FROM driver_work WHERE client = $1 AND n = 1000', [number]), 0)
}

async function errors(client, number) {
  await fails(client.query('SELECT 1 / $1::int', [0]), '22012')
  await fails(client.query({ name: 'broken', text: 'SELECT * FROM no_such_table' }), '42P01')
  await fails(client.query('SELEC'), '42601')
  await fails(client.query({ name: 'divide', text: 'SELECT 100 / $1::int', values: [0] }), '22012')
  assert.equal(await one(client, { name: 'divide', text: 'SELECT 100 / $1::int', values: [4] }), 25)
  assert.equal(await one(client, 'SELECT $1::int', [number]), number)
}

async function queued(client, number) {
  const answers = Array.from({ length: 50 }, (_, n) => one(client, 'SELECT $1::int + $2::int', [number, n]))
  assert.deepEqual(await Promise.all(answers), Array.from({ length: 50 }, (_, n) => number + n))
}

async function pipelined(number) {
  const client = new pg.Client({ ...where, pipeline: true })
  await client.connect()
  // not the last one: an error rejects before ReadyForQuery, and who leaves then leaves in the middle of an answer
  const asked = Array.from({ length: 40 }, (_, n) => {
    if (n % 10 === 4) return client.query('SELECT 1 / $1::int', [0]).then(() => 'no error', (error) => error.code)
    return one(client, n % 2 ? { name: 'piped', text: 'SELECT $1::int', values: [n] } : ['SELECT $1::int', [n]][0], n % 2 ? undefined : [n])
  })
  const expected = Array.from({ length: 40 }, (_, n) => (n % 10 === 4 ? '22012' : n))
  assert.deepEqual(await Promise.all(asked), expected, `client ${number}`)
  await client.end()
}

async function copy(client, number) {
  const rows = Array.from({ length: 100 }, (_, n) => `${number}\t${n}\t${number}-${n}\n`)
  await client.query('DELETE FROM driver_work WHERE client = $1', [number])
  await pipeline(Readable.from(rows), client.query(copyFrom('COPY driver_work FROM STDIN')))
  const out = client.query(copyTo(`COPY (SELECT * FROM driver_work WHERE client = ${number} ORDER BY n) TO STDOUT`))
  const chunks = []
  for await (const chunk of out) chunks.push(chunk)
  assert.equal(Buffer.concat(chunks).toString(), rows.join(''))
  await assert.rejects(pipeline(Readable.from(['no number\n']), client.query(copyFrom('COPY driver_work FROM STDIN'))), { code: '22P02' })
  assert.equal(await one(client, 'SELECT count(*)::int FROM driver_work WHERE client = $1', [number]), 100)
}

async function cursors(client) {
  const cursor = client.query(new Cursor('SELECT generate_series(1, $1::int) AS n', [1000]))
  let sum = 0
  for (let rows = await cursor.read(150); rows.length; rows = await cursor.read(150)) sum += rows.reduce((s, { n }) => s + n, 0)
  assert.equal(sum, 500500)
  await cursor.close()
  const early = client.query(new Cursor('SELECT generate_series(1, 1000) AS n'))
  assert.equal((await early.read(1))[0].n, 1)
  await early.close()
  assert.equal(await one(client, 'SELECT 1'), 1)
}

async function cancel(client, number) {
  const query = new pg.Query(`SELECT pg_sleep(30), ${number}`)
  const ended = new Promise((resolve, reject) => { query.on('error', reject); query.on('end', resolve) })
  client.query(query)
  const running = `SELECT count(*)::int FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(30), ${number}' AND state = 'active'`
  const watcher = new pg.Client(where)
  await watcher.connect()
  while (!await one(watcher, running)) await new Promise((resolve) => setTimeout(resolve, 10))
  new pg.Client(where).cancel(client, query)
  await fails(ended, '57014')
  await watcher.end()
  assert.equal(await one(client, 'SELECT $1::int', [number]), number)
}

const pool = new pg.Pool({ ...where, max: clients })
await Promise.all(Array.from({ length: clients }, async (_, number) => {
  const client = await pool.connect()
  for (const step of [types, statements, transactions, errors, queued, cursors, copy]) await step(client, number)
  await pipelined(number)
  client.release()
}))
const sleeper = await pool.connect()
await cancel(sleeper, 0)
sleeper.release()
// checked out for one query each, by whoever is free
const answers = await Promise.all(Array.from({ length: 100 }, (_, n) => one(pool, 'SELECT $1::int', [n])))
assert.deepEqual(answers, Array.from({ length: 100 }, (_, n) => n))
await pool.end()
console.log('done')
