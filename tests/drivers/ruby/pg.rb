# Ruby's pg.
require "bigdecimal"
require "json"
require "pg"
require "timeout"

TABLE = ENV.fetch("DRIVER_TABLE")
UNICODE = "Grüße, 世界 🐘"

def session
  connection = PG.connect
  yield connection
ensure
  connection&.close
end

def equal(got, expected)
  raise "got #{got.inspect[0, 200]}, expected #{expected.inspect[0, 200]}" unless got == expected
end

def value(connection, sql, *parameters)
  connection.exec_params(sql, parameters).getvalue(0, 0)
end

def fails(sqlstate)
  yield
rescue PG::Error => error
  equal(error.result.error_field(PG::PG_DIAG_SQLSTATE), sqlstate)
else
  raise "it didn't fail with #{sqlstate}"
end

def noted(number)
  session { |other| other.exec_params("SELECT id FROM #{TABLE} WHERE id = $1 FOR SHARE", [number]).ntuples }
end

CHECKS = {
  connect: lambda {
    session do |connection|
      equal(value(connection, "SELECT 1"), "1")
      equal(connection.server_version >= 150_000, true)
    end
  },
  types: lambda {
    session do |connection|
      connection.type_map_for_results = PG::BasicTypeMapForResults.new(connection)
      connection.type_map_for_queries = PG::BasicTypeMapForQueries.new(connection)
      {
        "integer" => 2**31 - 1,
        "bigint" => -(2**53) - 1,
        "numeric" => BigDecimal("12345678901234567890.0987654321"),
        "text" => UNICODE,
        "timestamptz" => Time.utc(2026, 1, 2, 3, 4, 5.678901r),
        "integer[]" => [1, 2, nil],
        "text[]" => ["a", nil, 'with "quotes", {braces}'],
        "boolean" => true,
        "date" => nil,
      }.each { |type, one| equal(value(connection, "SELECT $1::#{type}", one), one) }
      equal(value(connection, "SELECT $1::jsonb", '{"a": [1, null]}'), { "a" => [1, nil] })
      connection.type_map_for_queries = PG::TypeMapAllStrings.new
      bytes = { value: "\x00\xFF'\\".b, format: 1 }
      equal(connection.exec_params("SELECT $1::bytea", [bytes], 1).getvalue(0, 0), bytes[:value])
    end
  },
  prepared: lambda {
    session do |connection|
      connection.prepare("plus", "SELECT $1::integer + 1")
      connection.prepare("s", "SELECT $1::text || 'x'")
      20.times do |number|
        equal(connection.exec_prepared("plus", [number]).getvalue(0, 0), (number + 1).to_s)
        equal(connection.exec_prepared("s", [number]).getvalue(0, 0), "#{number}x")
        connection.transaction do |inside|
          equal(inside.exec_prepared("plus", [number]).getvalue(0, 0), (number + 1).to_s)
        end
      end
      connection.exec("DEALLOCATE plus")
      fails("26000") { connection.exec_prepared("plus", [1]) }
    end
  },
  commit: lambda {
    session do |connection|
      connection.transaction { |inside| inside.exec("INSERT INTO #{TABLE} VALUES (100, 'kept')") }
      equal(noted(100), 1)
    end
  },
  rollback: lambda {
    session do |connection|
      connection.transaction do |inside|
        inside.exec("INSERT INTO #{TABLE} VALUES (200, 'gone')")
        raise "on purpose"
      end
    rescue RuntimeError
      equal(noted(200), 0)
    end
  },
  savepoint: lambda {
    session do |connection|
      connection.transaction do |inside|
        inside.exec("INSERT INTO #{TABLE} VALUES (300)")
        inside.exec("SAVEPOINT here")
        fails("23505") { inside.exec("INSERT INTO #{TABLE} VALUES (300)") }
        inside.exec("ROLLBACK TO here")
        inside.exec("INSERT INTO #{TABLE} VALUES (301)")
      end
      equal(noted(300) + noted(301), 2)
    end
  },
  error: lambda {
    session do |connection|
      3.times do
        fails("22012") { connection.exec_params("SELECT 1/$1::integer", [0]) }
        fails("42601") { connection.exec("SELEC 1") }
        equal(value(connection, "SELECT 1"), "1")
      end
    end
  },
  error_in_transaction: lambda {
    session do |connection|
      3.times do
        connection.exec("BEGIN")
        fails("22012") { connection.exec("SELECT 1/0") }
        fails("25P02") { connection.exec_params("SELECT $1::integer", [1]) }
        equal(connection.transaction_status, PG::PQTRANS_INERROR)
        connection.exec("ROLLBACK")
        equal(value(connection, "SELECT 1"), "1")
      end
    end
  },
  copy_in: lambda {
    session do |connection|
      result = connection.copy_data("COPY #{TABLE} (id, note) FROM STDIN", PG::TextEncoder::CopyRow.new) do
        10_000.times { |number| connection.put_copy_data([(1_000_000 + number).to_s, UNICODE]) }
      end
      equal(result.cmd_tuples, 10_000)
    end
  },
  copy_out: lambda {
    session do |connection|
      size = 0
      connection.copy_data("COPY (SELECT generate_series(10000, 19999)) TO STDOUT") do
        while (row = connection.get_copy_data)
          size += row.size
        end
      end
      equal(size, 60_000)
    end
  },
  cursor: lambda {
    session do |connection|
      sum = 0
      connection.transaction do |inside|
        inside.exec("DECLARE portions CURSOR FOR SELECT generate_series(1, 10000)")
        until (rows = inside.exec("FETCH 100 FROM portions")).ntuples.zero?
          sum += rows.sum { |row| row["generate_series"].to_i }
        end
      end
      equal(sum, 50_005_000)
    end
  },
  cancel: lambda {
    session do |connection|
      connection.send_query("SELECT pg_sleep(30)")
      sleep(0.5)
      equal(connection.cancel, nil)
      fails("57014") { connection.get_last_result }
      equal(value(connection, "SELECT 1"), "1")
    end
  },
  listen: lambda {
    session do |listener|
      session do |sender|
        listener.exec("LISTEN ruby_news")
        3.times { |number| sender.exec_params("SELECT pg_notify('ruby_news', $1)", [number]) }
        heard = []
        3.times { listener.wait_for_notify(10) { |_, _, payload| heard << payload } }
        equal(heard, %w[0 1 2])
      end
    end
  },
  big_row: lambda {
    big = "0123456789abcdef" * (4 * 1024 * 1024 / 16)
    session { |connection| equal(value(connection, "SELECT $1::text", big), big) }
  },
  batch: lambda {
    session do |connection|
      connection.enter_pipeline_mode
      100.times { |number| connection.send_query_params("SELECT $1::integer", [number]) }
      connection.pipeline_sync
      answers = Array.new(100) do
        got = connection.get_result.getvalue(0, 0).to_i
        equal(connection.get_result, nil)
        got
      end
      equal(answers, (0...100).to_a)
      equal(connection.get_result.result_status, PG::PGRES_PIPELINE_SYNC)
      connection.exit_pipeline_mode
      connection.exec_params("INSERT INTO #{TABLE} VALUES ($1)", [500])
    end
  },
  settings: lambda {
    session do |connection|
      session do |other|
        connection.exec("SET work_mem = '7MB'")
        20.times do
          equal(value(connection, "SHOW work_mem"), "7MB")
          equal(value(other, "SHOW work_mem") == "7MB", false)
        end
      end
    end
  },
  many_connections: lambda {
    total = -> { session { |each| value(each, "SELECT number FROM #{TABLE} WHERE id = 0 FOR SHARE").to_i } }
    before = total.call
    add = lambda do
      session do |connection|
        10.times do
          connection.transaction do |inside|
            inside.exec_params("UPDATE #{TABLE} SET number = number + 1 WHERE id = $1", [0])
          end
        end
      end
    end
    Array.new(8) { Thread.new(&add) }.each(&:join)
    equal(total.call - before, 80)
  },
  replica: lambda {
    session do |connection|
      Timeout.timeout(10) { sleep(0.05) until value(connection, "SELECT pg_is_in_recovery()") == "t" }
    end
  },
  read_your_write: lambda {
    session do |connection|
      (700...750).each do |number|
        connection.exec_params("INSERT INTO #{TABLE} VALUES ($1)", [number])
        equal(value(connection, "SELECT id FROM #{TABLE} WHERE id = $1", number), number.to_s)
      end
    end
  },
}.freeze

$stdout.sync = true
puts JSON.generate({ version: PG::VERSION })
CHECKS.each do |check, work|
  Timeout.timeout(30) { work.call }
  puts JSON.generate({ check: check, ok: true, detail: "" })
rescue StandardError => error
  puts JSON.generate({ check: check, ok: false, detail: "#{error.class}: #{error.message} #{error.backtrace[0, 3]}"[0, 600] })
end
